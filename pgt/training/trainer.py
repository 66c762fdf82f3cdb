"""The training loop: a step that fits on one screen, an epoch of steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from inspect import signature
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pgt.core.errors import TrainingError
from pgt.core.types import Alteration, Batch, Loader, Loss, Record, Schedule, Sink
from pgt.training import batch_norm
from pgt.training.optimizer import set_rate
from pgt.training.precision import Precision
from pgt.training.ranks import ALONE, Ranks
from pgt.training.recorder import Recorder
from pgt.training.tally import Tally

OPTIONS = signature(DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in OPTIONS else "broadcast_buffers"  # before torch 2.15
KEEP_BUFFERS: dict[str, Any] = {SYNC_BUFFERS: False}
"""The option of DDP that leaves each rank its own running statistics until `Trainer.share_buffers`."""

SCALER_PATIENCE = 24
"""fp16: training is given up after more than this many consecutive steps with a non-finite loss. Until then fp16
overflow may be the cause, and the gradient scaler halves its scale at each of them (from 65536 to 2^-8)."""

LEAST_SCALE = 2.0**-24
"""fp16: training is given up if the gradient scaler still skips steps below this loss scale, the smallest number of
fp16: losses or gradients are finite at no scale then."""


@dataclass(frozen=True)
class Progress:
    """The progress within an epoch.

    Attributes:
        epoch: its index, from 0.
        steps: the number of steps done.
        seconds: the time that they took.
    """

    epoch: int
    steps: int = 0
    seconds: float = 0.0


@dataclass
class Trainer:
    """Everything a step touches.

    Attributes:
        model: the network on the training device, with the same weights on every rank.
        loss: (logits, target) -> scalar.
        schedule: optimizer step -> learning rate.
        alterations: attached to the model, in order; they change the unscaled gradients.
        ranks: this process among those that train together.
        bn_statistics: `first` or `mean` (see `batch_norm.running_statistics`).
        accumulating: whether a step has more than one group on a rank.
        compiled: run network and loss through torch.compile.
        diagnostics: returns more entries for each record, perhaps a `warning`; may wait for the device.
        seed: of the random numbers that network, loss and alterations draw while they train.
        recorder: records norms, if the config asks for it, on the rank that writes.
        unused: whether there are parameters that the logits do not depend on, as in some networks of the user's own.
    """

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    alterations: Sequence[Alteration]
    precision: Precision
    scaler: torch.amp.GradScaler
    ranks: Ranks = ALONE
    bn_statistics: str = batch_norm.FIRST
    accumulating: bool = True
    compiled: bool = False
    diagnostics: Callable[[], dict[str, Any]] = dict
    seed: int = 0
    recorder: Recorder | None = None
    unused: bool = False
    progress: Progress = field(init=False, default_factory=lambda: Progress(-1))
    tally: Tally = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.tally = Tally(self.parameters[0][1].device, self.ranks)
        self._network: Any = self.model
        self._loss: Loss = self.loss
        if self.compiled:  # before DDP, whose forward cannot be compiled; DDP's hooks are on the parameters
            # By default torch.compile does not notice the recorder's hook and may reuse a graph compiled without it.
            torch._dynamo.config.skip_nnmodule_hook_guards = False
            torch.compiler.reset()  # it compiles a function for 8 networks at most; a sweep's runs share this process
            self._network, self._loss = torch.compile(self.model), torch.compile(self.loss)
        self._shared: DistributedDataParallel | None = None
        if self.ranks.world_size > 1:
            self._network = self._shared = DistributedDataParallel(
                self._network,
                device_ids=[self.ranks.device] if self.ranks.device.type == "cuda" else None,
                **KEEP_BUFFERS,
                gradient_as_bucket_view=True,
                static_graph=not self.accumulating,  # a static graph fails with no_sync (torch 2.15)
                find_unused_parameters=self.accumulating and self.unused,  # a static graph finds them itself
            )

    def train_step(self, groups: Sequence[Batch], step: int) -> None:
        """One optimizer step on the mean gradient of equally large groups, without a host synchronisation."""
        set_rate(self.optimizer, self.schedule(step))
        for index, batch in enumerate(groups):
            self._seed(step, 1 + self.ranks.rank * len(groups) + index)
            with self._synchronised(index == len(groups) - 1), self._statistics(index, len(groups)):
                with self.precision.autocast():
                    logits = self._network(batch.images)
                    loss = self._loss(logits, batch.labels)
                self.scaler.scale(loss).backward()
            self.tally.add(logits.detach(), batch.labels, loss.detach())
        self.tally.end_step(step)
        self.scaler.unscale_(self.optimizer)
        if len(groups) > 1:  # divide after the backward passes, as DDP does, so that hooks see a group's own loss
            torch._foreach_div_([p.grad for _, p in self.parameters if p.grad is not None], len(groups))
        recorder = self.recorder if self.recorder is not None and self.recorder.due(step) else None
        if recorder is not None:
            recorder.gradients(self.parameters)
        self._seed(step, 0)  # alterations draw the same on every rank
        for alteration in self.alterations:
            alteration(self.parameters, step)
        if recorder is not None:
            recorder.gradients(self.parameters)
            recorder.take(step, logits.detach(), batch.labels)
        self.scaler.step(self.optimizer)
        self.tally.update(self.scaler)
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training resumes from, as tensors and plain types. All ranks call it together.

        Its tensors are those of the trainer, not copies. The running statistics alone are new ones, combined over all
        ranks: this rank keeps its own, so that no number depends on when a checkpoint is made.
        """
        combined = {id(buffer): buffer.clone() for buffer in batch_norm.buffers(self.model)}  # wrappers change names
        self._combine(list(combined.values()))
        values = self.model.state_dict(keep_vars=True)
        return {
            "model": {key: _alone(combined.get(id(value), value)) for key, value in values.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "tally": self.tally.state_dict(),
            "alterations": [alteration.state_dict() for alteration in self.alterations],
            "loss": self.loss.state_dict() if isinstance(self.loss, nn.Module) else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state. Raises KeyError, RuntimeError or ValueError if it is another trainer's."""
        self.model.load_state_dict(state["model"])
        fused = [group["fused"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, fused, strict=True):
            group["fused"] = own  # the saved option fits the device that saved
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.tally.load_state_dict(state["tally"])
        for alteration, own_state in zip(self.alterations, state["alterations"], strict=True):
            alteration.load_state_dict(own_state)
        if isinstance(self.loss, nn.Module):
            self.loss.load_state_dict(state["loss"])

    def _seed(self, step: int, part: int) -> None:
        """Seed torch's generators, which dropout uses, by the run's seed, a step and a part of it.

        So a group draws the same random numbers whichever rank it is on, and in a resumed run. Without
        `recipe.local_batch`, a rank's share is its group.

        Args:
            part: from 1, the number of a group among those of all ranks; 0 for the alterations.
        """
        seed = int(np.random.SeedSequence([self.seed, step, part]).generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(seed)
        if self.ranks.device.type == "cuda":
            torch.cuda.default_generators[self.ranks.device.index].manual_seed(seed)

    def share_buffers(self) -> None:
        """Combine the running statistics over the ranks, and give the result to every rank."""
        self._combine(batch_norm.buffers(self.model))

    def _combine(self, statistics: list[Tensor]) -> None:
        """Replace running statistics by those of rank 0 or by the mean over all ranks, as `bn_statistics` says."""
        combine = self.ranks.all_reduce_mean_ if self.bn_statistics == batch_norm.MEAN else self.ranks.broadcast_
        combine(statistics)

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Return the context in which gradients are averaged over ranks only with the last group of a step."""
        return nullcontext() if last or self._shared is None else self._shared.no_sync()

    def _statistics(self, group: int, groups: int) -> AbstractContextManager[None]:
        return batch_norm.running_statistics(self.model, self.bn_statistics, group, groups, self.ranks.first)

    def train_epoch(
        self, loader: Loader, epoch: int, sink: Sink, log_every: int, pause: Callable[[], None] = lambda: None
    ) -> Record:
        """Train on every batch of an epoch (from 0), or the rest of it; write a record every `log_every` steps.

        Args:
            pause: called after each step; an exception that it raises ends the epoch.

        Returns:
            train_top1 (percent) and train_loss over the epoch's batches of finite loss, lr, loss_scale,
            images_per_second.

        Raises:
            TrainingError: the loss is no longer finite.
        """
        self.model.train()
        if self.progress.epoch != epoch:
            self.progress = Progress(epoch)
            self.tally.start_epoch()
        started = time.perf_counter() - self.progress.seconds
        first = epoch * loader.steps_per_epoch
        last = first + loader.steps_per_epoch - 1
        report: dict[str, Any] | None = None
        for step, groups in enumerate(_steps(loader, epoch, self.progress.steps), first + self.progress.steps):
            self.train_step(groups, step)
            if (step + 1) % log_every == 0 or step == last:
                report = self._report(step, started)
                sink.write(step, {"event": "step", "epoch": epoch, **report})
            self.progress = Progress(epoch, step + 1 - first, time.perf_counter() - started)
            pause()
        if report is None:  # a resumed run had already done all steps
            report = self._report(last, started)
        if not math.isfinite(report["train_loss"]):
            hint = report.get("warning", "try a smaller recipe.lr_peak")
            raise TrainingError(f"no loss of epoch {epoch + 1} was finite: {hint}")
        return report

    def _report(self, step: int, started: float) -> dict[str, Any]:
        """Report the epoch so far. This is the only place where the host waits for the device."""
        count, correct, loss, skipped, bad, first_bad = self.tally.read()
        if self.recorder is not None:
            self.recorder.drain()
        seconds = time.perf_counter() - started
        scale, more = self.scaler.get_scale(), self.diagnostics()
        if bad > (SCALER_PATIENCE if self.scaler.is_enabled() else 0):
            scaled = f" with the loss scale at {scale:g}" if self.scaler.is_enabled() else ""
            hint = more.get("warning", "try a smaller recipe.lr_peak or gradient clipping")
            raise TrainingError(
                f"the loss is not finite since step {first_bad:.0f}{scaled} (learning rate "
                f"{self.schedule(int(first_bad)):.3g}): {hint}"
            )
        if self.scaler.is_enabled() and skipped and scale < LEAST_SCALE:
            hint = "is there a root, a norm or a quotient of zero in network or loss, or a batch with a loss of NaN?"
            raise TrainingError(
                f"the gradients are not finite, even with the loss scale at {scale:g} (step {step}): "
                f"{more.get('warning', hint)}"
            )
        return {
            "train_top1": 100 * correct / count if count else math.nan,
            "train_loss": loss / count if count else math.nan,
            "lr": self.schedule(step),
            "loss_scale": scale,
            "skipped_steps": int(skipped),
            "images_per_second": count / seconds,
            **more,
        }


def _steps(loader: Loader, epoch: int, done: int) -> Iterator[list[Batch]]:
    """Yield the groups of each remaining step of an epoch."""
    batches = loader.epoch(epoch)
    for _ in range(done, loader.steps_per_epoch):
        yield list(islice(batches, loader.groups_per_step))


def _alone(value: Any) -> Any:
    """A value of a state as it is written: a tensor that is a small part of a larger one would be written with it."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    part = value.layout == torch.strided and value.untyped_storage().nbytes() > value.nbytes
    return value.clone() if part else value
