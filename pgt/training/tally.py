"""Counts of an epoch, kept on the device until they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgt.core.types import IGNORE_INDEX
from pgt.training.ranks import Ranks


class Tally:
    """Counts of an epoch: sums over the groups whose loss is finite, steps that the gradient scaler skipped, and the
    current streak of steps in which a loss is not finite on any rank.

    Each rank keeps its own counts, on the device until they are read. The streak continues across epochs.
    """

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        self._ranks = ranks
        self._streak: list[int] = []  # bad steps up to the last step that was read
        self._unread: dict[int, Tensor] = {}  # step -> 1.0 if it is bad on this rank
        self._step_is_good = torch.ones((), dtype=torch.bool, device=device)
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._skipped = torch.zeros((), dtype=torch.float64, device=device)

    def start_epoch(self) -> None:
        self._sums = torch.zeros_like(self._sums)
        self._skipped = torch.zeros_like(self._skipped)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count a group: its samples, the correct ones, and its loss, weighted by the number of samples.

        A group of a non-finite loss does not count: the gradient scaler skips its step, and it would spoil the mean.
        """
        good = torch.isfinite(loss)
        correct, count = (logits.argmax(1) == labels).sum(), (labels != IGNORE_INDEX).sum()
        sums = torch.stack([count.double(), correct.double(), loss.double() * count])  # a loss may be in 16 bits
        self._sums += torch.where(good, sums, 0.0)
        self._step_is_good = self._step_is_good & good

    def end_step(self, step: int) -> None:
        """Note whether the step was good, after all of its groups have been added."""
        self._unread[step] = (~self._step_is_good).double()
        self._step_is_good = torch.ones_like(self._step_is_good)

    def update(self, scaler: torch.amp.GradScaler) -> None:
        """Let the scaler adapt. It lowers its scale if, and only if, it has skipped the step."""
        if not scaler.is_enabled():
            return
        scale = scaler._get_scale_async()  # get_scale() would wait for the device
        assert scale is not None
        before = scale.clone()
        scaler.update()  # changes `scale` in place
        self._skipped += scale < before

    def state_dict(self) -> dict[str, Any]:
        """Return the counts over all ranks, which call it together."""
        samples, correct, loss, skipped, *_ = self.read()
        return {"sums": [samples, correct, loss], "skipped": skipped, "streak": list(self._streak)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from the counts over all ranks: rank 0 takes them, the others start from zero."""
        sums = state["sums"] if self._ranks.first else [0.0] * len(state["sums"])
        self._sums = torch.tensor(sums, dtype=self._sums.dtype, device=self._sums.device)
        self._skipped = torch.full_like(self._skipped, state["skipped"])
        self._streak = list(state["streak"])

    def read(self) -> list[float]:
        """Return, over all ranks: samples, correct ones and the sum of losses; the skipped steps of the epoch; the
        number of consecutive steps with a non-finite loss, and the first of them."""
        sums = self._ranks.all_reduce_sum(self._sums.clone())
        skipped, *bad = self._ranks.all_reduce_max(torch.stack([self._skipped, *self._unread.values()])).tolist()
        for step, is_bad in zip(self._unread, bad, strict=True):
            self._streak = [*self._streak, step] if is_bad else []
        self._unread = {}
        return [*sums.tolist(), skipped, len(self._streak), self._streak[0] if self._streak else math.inf]
