"""The training loop: a step that fits on one screen, an epoch of steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pgt.errors import TrainingError
from pgt.training.norms import running_statistics
from pgt.training.optimizer import set_rate
from pgt.training.precision import Precision
from pgt.training.schedule import Schedule
from pgt.types import Batch, GradientTransform, Loader, Loss, Record, Sink

SCALER_PATIENCE = 24
"""Steps in a row with a non-finite loss after which a gradient scaler has had its say: 65536 halved so often
is 2^-8, and the loss itself does not depend on the scale."""


@dataclass
class Trainer:
    """Everything a step touches.

    Attributes:
        model: on the training device.
        loss: (logits, target) -> scalar.
        transforms: applied in order to the unscaled gradients.
        schedule: optimizer step -> learning rate.
        diagnostics: more entries for each record, `warning` among them where there is one; may wait for the device.
    """

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    transforms: Sequence[GradientTransform]
    precision: Precision
    scaler: torch.amp.GradScaler
    diagnostics: Callable[[], dict[str, Any]] = dict
    tally: Tally = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.tally = Tally(self.parameters[0][1].device)

    def train_step(self, groups: Sequence[Batch], step: int) -> None:
        """One optimizer step on the mean gradient of equally large groups, without a host synchronisation."""
        set_rate(self.optimizer, self.schedule(step))
        for index, batch in enumerate(groups):
            with self.precision.autocast(), running_statistics(self.model, updated=index == 0):
                logits = self.model(batch.images)
                loss = self.loss(logits, batch.labels)
            self.scaler.scale(loss).backward()
            self.tally.add(logits.detach(), batch.labels, loss.detach())
        self.tally.end_step(step)
        self.scaler.unscale_(self.optimizer)
        if len(groups) > 1:  # after the backward passes, as DDP does: the loss that a hook sees is a group's own
            torch._foreach_div_([p.grad for _, p in self.parameters if p.grad is not None], len(groups))
        for transform in self.transforms:
            transform(self.parameters, step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def train_epoch(self, loader: Loader, epoch: int, sink: Sink, log_every: int) -> Record:
        """Train on every batch of an epoch (from 0); write a record each `log_every` steps.

        Returns:
            train_top1 (percent) and train_loss over the epoch's batches of finite loss, lr, loss_scale,
            images_per_second.

        Raises:
            TrainingError: the loss is no longer finite.
        """
        self.model.train()
        self.tally.start_epoch()
        started = time.perf_counter()
        first = epoch * loader.steps_per_epoch
        last = first + loader.steps_per_epoch - 1
        for step, groups in enumerate(_steps(loader, epoch), start=first):
            self.train_step(groups, step)
            if (step + 1) % log_every == 0 or step == last:
                report = self._report(step, started)
                sink.write(step, {"event": "step", "epoch": epoch, **report})
        if not math.isfinite(report["train_loss"]):
            raise TrainingError(f"no loss of epoch {epoch + 1} was finite: try a smaller recipe.lr_peak")
        return report

    def _report(self, step: int, started: float) -> dict[str, Any]:
        """The epoch so far. Here, and only here, the host waits for the device."""
        count, correct, loss, bad, first_bad = self.tally.read()
        seconds = time.perf_counter() - started
        scale, more = self.scaler.get_scale(), self.diagnostics()
        if bad > (SCALER_PATIENCE if self.scaler.is_enabled() else 0):
            scaled = f" with the loss scale at {scale:g}" if self.scaler.is_enabled() else ""
            hint = more.get("warning", "try a smaller recipe.lr_peak or gradient clipping")
            raise TrainingError(
                f"the loss is not finite since step {first_bad:.0f}{scaled} (learning rate "
                f"{self.schedule(int(first_bad)):.3g}): {hint}"
            )
        return {
            "train_top1": 100 * correct / count if count else math.nan,
            "train_loss": loss / count if count else math.nan,
            "lr": self.schedule(step),
            "loss_scale": scale,
            "images_per_second": count / seconds,
            **more,
        }


def _steps(loader: Loader, epoch: int) -> Iterator[list[Batch]]:
    """The groups of each step of an epoch."""
    batches = loader.epoch(epoch)
    for _ in range(loader.steps_per_epoch):
        yield list(islice(batches, loader.groups_per_step))


class Tally:
    """Sums over the batches of an epoch whose loss is finite, and the present streak of steps where one is not.

    All of it is kept on the device. The streak outlasts the epoch.
    """

    def __init__(self, device: torch.device) -> None:
        self._streak = torch.zeros(2, dtype=torch.float64, device=device)
        self._step_is_good = torch.ones((), dtype=torch.bool, device=device)
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def start_epoch(self) -> None:
        self._sums = torch.zeros_like(self._sums)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count a group: its samples, the correct ones, and its loss, as often as it has samples.

        A group whose step the gradient scaler skips for its loss must not spoil the mean: it does not count.
        """
        good = torch.isfinite(loss)
        correct = (logits.argmax(1) == labels).sum()
        sums = torch.stack([torch.full_like(loss, len(labels)), correct.to(loss.dtype), loss * len(labels)])
        self._sums += torch.where(good, sums, 0.0)
        self._step_is_good = self._step_is_good & good

    def end_step(self, step: int) -> None:
        """Continue the streak, or end it."""
        length, since = self._streak
        bad = ~self._step_is_good
        self._streak = torch.stack([(length + 1) * bad, torch.where(length > 0, since, step)])
        self._step_is_good = torch.ones_like(self._step_is_good)

    def read(self) -> list[float]:
        """Samples, correct ones, sum of losses; steps in a row with a non-finite loss, and the first of them."""
        return torch.cat([self._sums, self._streak]).tolist()
