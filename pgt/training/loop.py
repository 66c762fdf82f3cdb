"""The training loop: a step that fits on one screen, an epoch of steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

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
        diagnostics: more numbers for each record; may wait for the device.
    """

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    transforms: Sequence[GradientTransform]
    precision: Precision
    scaler: torch.amp.GradScaler
    diagnostics: Callable[[], dict[str, float]] = dict
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
            self.scaler.scale(loss / len(groups)).backward()
            self.tally.add(logits.detach(), batch.labels, loss.detach(), step)
        self.scaler.unscale_(self.optimizer)
        for transform in self.transforms:
            transform(self.parameters, step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def train_epoch(self, loader: Loader, epoch: int, sink: Sink, log_every: int) -> Record:
        """Train on every batch of an epoch (from 0); write a record each `log_every` steps.

        Returns:
            train_top1 (percent) and train_loss over the epoch's batches, lr, loss_scale, images_per_second.

        Raises:
            TrainingError: the loss is no longer finite.
        """
        self.model.train()
        self.tally.reset()
        started = time.perf_counter()
        first = epoch * loader.steps_per_epoch
        last = first + loader.steps_per_epoch - 1
        for step, groups in enumerate(_steps(loader, epoch), start=first):
            self.train_step(groups, step)
            if (step + 1) % log_every == 0 or step == last:
                report = self._report(step, time.perf_counter() - started)
                sink.write(step, {"event": "step", "epoch": epoch, **report})
        return report

    def _report(self, step: int, seconds: float) -> dict[str, float]:
        """The epoch so far. Here, and only here, the host waits for the device."""
        count, correct, loss, bad, first_bad = self.tally.read()
        scale = self.scaler.get_scale()
        if bad > (SCALER_PATIENCE if self.scaler.is_enabled() else 0):
            scaled = f" with the loss scale at {scale:g}" if self.scaler.is_enabled() else ""
            raise TrainingError(
                f"the loss is not finite since step {first_bad:.0f}{scaled} (learning rate "
                f"{self.schedule(int(first_bad)):.3g}): try a smaller recipe.lr_peak or gradient clipping"
            )
        return {
            "train_top1": 100 * correct / count,
            "train_loss": loss / count,
            "lr": self.schedule(step),
            "loss_scale": scale,
            "images_per_second": count / seconds,
            **self.diagnostics(),
        }


def _steps(loader: Loader, epoch: int) -> Iterator[list[Batch]]:
    """The groups of each step of an epoch."""
    batches = loader.epoch(epoch)
    for _ in range(loader.steps_per_epoch):
        yield list(islice(batches, loader.groups_per_step))


class Tally:
    """Sums over the batches of an epoch, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reset()

    def reset(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        self._bad = torch.zeros(2, dtype=torch.float64, device=self._device)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor, step: int) -> None:
        """Count a group: its samples, the correct ones, and its loss, as often as it has samples."""
        correct = (logits.argmax(1) == labels).sum()
        bad = ~torch.isfinite(loss)
        loss = torch.where(bad, 0.0, loss)  # a step that the gradient scaler skips must not spoil the mean
        self._sums += torch.stack([torch.full_like(loss, len(labels)), correct.to(loss.dtype), loss * len(labels)])
        run, since = self._bad
        self._bad = torch.stack([(run + 1) * bad, torch.where(run > 0, since, step)])

    def read(self) -> list[float]:
        """Samples, correct ones, sum of losses; groups in a row with a non-finite loss, and the step since."""
        return torch.cat([self._sums, self._bad]).tolist()
