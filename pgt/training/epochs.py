"""The epochs of a run: training, evaluation, records and checkpoints, and stops between two steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from pgt.config.schema import Config
from pgt.core.errors import Stopped, TrainingError
from pgt.core.signals import Stop
from pgt.core.types import BETWEEN_WARNINGS, Loader, Record, Sink
from pgt.core.words import some
from pgt.runs.folder import Summary
from pgt.runs.norms import ZEROED_OUT
from pgt.training.evaluation import evaluate
from pgt.training.ranks import Ranks
from pgt.training.recorder import filter_norms
from pgt.training.trainer import Trainer


def train_epochs(
    config: Config,
    trainer: Trainer,
    loaders: tuple[Loader, Loader],
    summary: Summary,
    sink: Sink,
    save: Callable[[Summary, dict[str, Any], bool], None],
    stop: Stop,
) -> Summary:
    """Train and evaluate the epochs that are left. Every rank calls it.

    Args:
        summary: after the last whole epoch.
        save: called with the summary, the state to resume from, and whether the epoch that has just ended is the best
            so far; after each epoch, and every `trainer.checkpoint_minutes` between two steps.

    Raises:
        Stopped: a rank was asked to stop; the state is saved.
        TrainingError: the loss is no longer finite.
    """
    breaks = Breaks(trainer, loaders, save, stop, 60 * config.trainer.checkpoint_minutes, summary)
    for epoch in range(summary.epochs, config.recipe.epochs):
        record = _epoch(config, trainer, loaders, epoch, sink, breaks)
        before = summary.test_top1_best
        breaks.summary = summary = _updated(summary, record)
        breaks.save(best=summary.test_top1_best != before)
    return summary


DUE = 1
"""What a rank asks for at a break if a checkpoint is due. A stop signal's number is larger, and asks to stop, too."""


@dataclass
class Breaks:
    """The breaks between two batches, at which a run can write a checkpoint and stop.

    Attributes:
        loaders: of training and test images; only the first one has a place to resume from.
        seconds: between two checkpoints.
        summary: after the last whole epoch.
    """

    trainer: Trainer
    loaders: tuple[Loader, Loader]
    write: Callable[[Summary, dict[str, Any], bool], None]
    stop: Stop
    seconds: float
    summary: Summary
    saved: float = field(default_factory=time.monotonic)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint. All ranks collect it together, and rank 0 writes it."""
        state = {"loader": self.loaders[0].state_dict(), "skipped": _skipped(self.trainer.ranks, *self.loaders)}
        self.write(self.summary, {**self.trainer.state_dict(), **state}, best)
        self.saved = time.monotonic()

    def pause(self) -> None:
        """Write a checkpoint if one is due, and stop if any rank was asked to; all ranks agree on both."""
        ranks = self.trainer.ranks
        due = ranks.first and time.monotonic() - self.saved >= self.seconds
        wanted = ranks.all_reduce_max_int(self.stop.wanted or (DUE if due else 0))
        if wanted:
            self.save()
        if wanted > DUE:
            ranks.all_reduce_max_int(0)  # wait until rank 0 has written: schedulers end a job when one rank leaves
            done = self.trainer.progress
            raise Stopped(wanted, f"after step {done.steps} of epoch {done.epoch + 1}")


def _epoch(
    config: Config, trainer: Trainer, loaders: tuple[Loader, Loader], epoch: int, sink: Sink, breaks: Breaks
) -> dict[str, Any]:
    """Train one epoch, and evaluate if that is due; returns its record."""
    train_loader, test_loader = loaders
    trained = trainer.train_epoch(train_loader, epoch, sink, config.trainer.log_every, breaks.pause)
    record = {"event": "epoch", "epoch": epoch, **trained}
    trainer.share_buffers()
    if (epoch + 1) % config.trainer.evaluate_every == 0 or epoch + 1 == config.recipe.epochs:
        record |= evaluate(
            trainer.model, test_loader, config.method.alpha, trainer.precision, trainer.ranks, breaks.pause
        )
    record = with_warnings_joined(record, _left_out(_skipped(trainer.ranks, *loaders)))
    if epoch + 1 >= max(SURE_EPOCHS, config.recipe.warmup_epochs + 1):
        record = with_warnings_joined(record, no_progress(record, trainer.model, *loaders))
    if trainer.recorder is not None:
        zeroed = list(trainer.recorder.zeroed_out().values())
        record |= {"zeroed_filters": sum(zeroed), "zeroed_filters_by_layer": zeroed}
    for alteration in trainer.alterations:  # last: a checkpoint within the evaluation must not have it done
        record = with_warnings_joined(record, alteration.end_epoch(epoch))
    sink.write((epoch + 1) * train_loader.steps_per_epoch - 1, record)
    if not math.isfinite(record.get("test_loss", 0.0)):
        hint = record.get("warning", "try a smaller recipe.lr_peak")
        raise TrainingError(f"the test loss is not finite after epoch {epoch + 1}: {hint}")
    return record


def with_warnings_joined(record: Record, more: Record) -> dict[str, Any]:
    """A record with more entries. If both have a warning, it has both of them."""
    warnings = [part["warning"] for part in (record, more) if "warning" in part]
    return {**record, **more, **({"warning": BETWEEN_WARNINGS.join(warnings)} if warnings else {})}


def _skipped(ranks: Ranks, *loaders: Loader) -> list[str]:
    """The paths of the files that could not be read so far, on any rank."""
    own = [str(path) for loader in loaders for path in loader.skipped]
    return sorted({path for part in ranks.all_gather_object(own) for path in part})


def _left_out(skipped: list[str]) -> dict[str, Any]:
    """The part of an epoch's record about files that were left out."""
    if not skipped:
        return {}
    return {"skipped_files": len(skipped), "warning": f"{len(skipped)} unreadable files left out: {some(skipped, 3)}"}


SURE_EPOCHS = 3
"""Epochs, besides those of the warmup, after which a network that learns has left chance."""


def no_progress(record: dict[str, Any], model: nn.Module, train: Loader, test: Loader) -> dict[str, Any]:
    """The warning of an epoch in which the network has learned nothing so far; empty if it has.

    Guessing has a loss of ln C at least, and an accuracy of 1 / C, which varies with the number n of samples by
    sqrt(1/C · (1 − 1/C) / n), or somewhat more: the guess follows the batches. With α = 0 the loss grows without bound,
    so any larger loss counts, too. A network that has just begun to learn shows it on the test set, if that was
    evaluated: the training accuracy is a mean over the epoch.
    """
    classes, top1, loss = train.num_classes, record["train_top1"] / 100, record["train_loss"]
    chance = 1 / classes

    def guesses(accuracy: float, samples: int) -> bool:
        return accuracy <= chance + 5 * math.sqrt(chance * (1 - chance) / samples)

    at_chance = guesses(top1, train.num_samples) and guesses(record.get("test_top1", 0.0) / 100, test.num_samples)
    if classes == 1 or loss < 0.99 * math.log(classes) or not at_chance:
        return {}
    filters = filter_norms(model)
    zeroed = int((filters < ZEROED_OUT).sum())
    return {
        "warning": f"it learns nothing so far: after epoch {record['epoch'] + 1} the training loss is {loss:.4g} "
        f"(guessing: ln {classes} = {math.log(classes):.3f}), the accuracy {100 * top1:.2f}%, and {zeroed} of "
        f"{len(filters)} filters are zeroed out: try a smaller recipe.lr_peak, more recipe.warmup_epochs or a larger "
        "method.alpha"
    }


MEASURED = {item.name for item in fields(Summary)} - {"images_per_second"}
"""The values that a summary takes from an epoch's record under the same name."""


def _updated(summary: Summary, record: dict[str, Any]) -> Summary:
    """The summary after the epoch of `record`."""
    speed, epoch = summary.images_per_second or record["images_per_second"], record["epoch"]
    mean_speed = speed + (record["images_per_second"] - speed) / (epoch + 1)
    measured = {"warning": None, **{name: value for name, value in record.items() if name in MEASURED}}
    if "test_top1" in record:  # not every epoch is evaluated
        best = max(summary.test_top1_best or 0.0, record["test_top1"])
        final = {"test_top1_final": record["test_top1"], "test_top5_final": record["test_top5"]}
        measured |= {"test_top1_best": best, **final}
    return replace(summary, epochs=epoch + 1, images_per_second=mean_speed, **measured)
