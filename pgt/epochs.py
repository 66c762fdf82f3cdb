"""The epochs of a run: each trained, evaluated where it is due, recorded, and added to the summary."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pgt.errors import TrainingError
from pgt.text import some

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgt.config import Config
    from pgt.runs import Summary
    from pgt.training.distributed import Ranks
    from pgt.training.loop import Trainer
    from pgt.types import Loader, Sink


def run_epochs(
    config: Config,
    trainer: Trainer,
    loaders: tuple[Loader, Loader],
    summary: Summary,
    sink: Sink,
    save: Callable[[Summary, bool], None],
) -> Summary:
    """Train and evaluate what epochs are left, on every rank alike.

    Args:
        save: called with the summary after each epoch, and whether it was the best so far.
    """
    for epoch in range(summary.epochs, config.recipe.epochs):
        record = _epoch(config, trainer, loaders, epoch, sink)
        best = record.get("test_top1", -1.0) > (-1.0 if summary.test_top1_best is None else summary.test_top1_best)
        summary = _updated(summary, record)
        save(summary, best)
    return summary


def _epoch(config: Config, trainer: Trainer, loaders: tuple[Loader, Loader], epoch: int, sink: Sink) -> dict[str, Any]:
    """Train one epoch, and evaluate where it is due; returns its record."""
    from pgt.training.evaluation import evaluate

    train_loader, test_loader = loaders
    trained = trainer.train_epoch(train_loader, epoch, sink, config.trainer.log_every)
    record = {"event": "epoch", "epoch": epoch, **trained}
    trainer.share_buffers()
    if (epoch + 1) % config.trainer.evaluate_every == 0 or epoch + 1 == config.recipe.epochs:
        record |= evaluate(trainer.model, test_loader, config.method.alpha, trainer.precision, trainer.ranks)
    record |= _left_out(loaders, trainer.ranks)
    if trainer.recorder is not None:
        zeroed = list(trainer.recorder.zeroed_out().values())
        record |= {"zeroed_filters": sum(zeroed), "zeroed_filters_by_layer": zeroed}
    sink.write((epoch + 1) * train_loader.steps_per_epoch - 1, record)
    if not math.isfinite(record.get("test_loss", 0.0)):
        hint = record.get("warning", "try a smaller recipe.lr_peak")
        raise TrainingError(f"the test loss is not finite after epoch {epoch + 1}: {hint}")
    return record


def _left_out(loaders: tuple[Loader, Loader], ranks: Ranks) -> dict[str, Any]:
    """What a record says of files that could not be read, on any rank."""
    skipped = sorted({path for part in ranks.gather([*loaders[0].skipped, *loaders[1].skipped]) for path in part})
    if not skipped:
        return {}
    return {"skipped_files": len(skipped), "warning": f"{len(skipped)} unreadable files left out: {some(skipped, 3)}"}


def _updated(summary: Summary, record: dict[str, Any]) -> Summary:
    """The summary after the epoch of `record`."""
    speed, epoch = summary.images_per_second or record["images_per_second"], record["epoch"]
    trained = replace(
        summary,
        epochs=epoch + 1,
        train_top1=record["train_top1"],
        train_loss=record["train_loss"],
        skipped_files=record.get("skipped_files", 0),
        images_per_second=speed + (record["images_per_second"] - speed) / (epoch + 1),
    )
    if "test_top1" not in record:  # not every epoch is evaluated
        return trained
    return replace(
        trained,
        test_top1_best=max(summary.test_top1_best or 0.0, record["test_top1"]),
        test_top1_final=record["test_top1"],
        test_top5_final=record["test_top5"],
        test_loss=record["test_loss"],
        test_loss_alpha=record["test_loss_alpha"],
        test_logit_norm=record["test_logit_norm"],
        test_ece=record["test_ece"],
        test_ece_alpha=record["test_ece_alpha"],
    )
