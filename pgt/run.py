"""Config in, run folder out: the one file that knows all parts."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgt import config as schema
from pgt import data, environment, run_folder, runs
from pgt.config import Config
from pgt.errors import InputError, TrainingError
from pgt.runs import DIVERGED, FINISHED, Summary

if TYPE_CHECKING:
    import torch

    from pgt.training.loop import Trainer
    from pgt.types import Loader


def run(config: Config, label: str = "") -> Summary:
    """Train one config, or return what it came to before.

    A finished or diverged run is returned at once (unless `trainer.force`); an interrupted one goes on from
    its last whole epoch.

    Args:
        config: checked by `pgt.validate`.
        label: in front of what is printed, as `[2/18]`.

    Raises:
        InputError: data, checkpoint or folder cannot be used. What a run had come to is kept.
        TrainingError: the loss is no longer finite; the folder says so.
    """
    dataset = data.open_set(**_data_options(config))
    fresh = _new_summary(config, dataset.manifest)
    folder = Path(config.paths.runs) / (config.experiment or "custom") / fresh.run_id
    before = None if config.trainer.force else runs.read_summary(folder)
    if before is not None and before.manifest != fresh.manifest:
        raise InputError(
            f"{folder} was made from other data ({before.manifest}, now {fresh.manifest}): "
            "add another paths.runs=... to keep both, or trainer.force=true to start over"
        )
    if before is not None and before.status in (FINISHED, DIVERGED):
        _report_earlier(before, fresh, folder, label)
        return before
    if before is not None:
        fresh = replace(fresh, started=before.started)  # what it has measured is its checkpoint's to say
    return _train(config, dataset, fresh, folder, label)


def _new_summary(config: Config, manifest: str) -> Summary:
    identity = schema.identity(config)
    return Summary(
        run_id=runs.run_id(identity),
        group_id=runs.group_id(identity),
        experiment=config.experiment,
        identity=identity,
        seed=config.seed,
        manifest=manifest,
        commit=environment.commit(),
        started=runs.now(),
    )


def _report_earlier(before: Summary, fresh: Summary, folder: Path, label: str) -> None:
    from rich.console import Console as Terminal

    other = f", by commit {before.commit}; this is {fresh.commit}" if before.commit != fresh.commit else ""
    text = f"{label}{folder}: {before.status} earlier{other}\n{label}{_result(before)}"
    Terminal(highlight=False, soft_wrap=True).print(text, markup=False)


def _train(config: Config, dataset: data.DataSet, summary: Summary, folder: Path, label: str) -> Summary:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    train, test, trainer = _assemble(config, dataset, device)
    total_steps = config.recipe.epochs * train.steps_per_epoch
    folder.mkdir(parents=True, exist_ok=True)
    with runs.lock(folder):
        if not config.trainer.force and (now := runs.read_summary(folder)) and now.status in (FINISHED, DIVERGED):
            _report_earlier(now, summary, folder, label)  # another process ended it while this one loaded
            return now
        if config.trainer.force:
            run_folder.clear(folder)
        state = run_folder.resume(folder, trainer, device)
        earlier_commit = state["summary"].get("commit", summary.commit)
        summary = Summary(**{**asdict(summary), **state["summary"], "commit": summary.commit})
        run_folder.record_start(folder, config, summary, device)
        title = f"{label}{describe(config)}"
        with run_folder.sinks(folder, title, total_steps, state["metrics_size"]) as (sink, console, metrics):
            begin = f", from epoch {state['epoch'] + 1}" if state["epoch"] else ""
            size = f"{config.recipe.epochs} epochs of {train.steps_per_epoch} steps"
            console.say(f"{title}: {size}{begin}  -> {folder}")
            if earlier_commit != summary.commit:
                console.say(f"{title}: begun by commit {earlier_commit}, goes on under {summary.commit}")
            try:
                for epoch in range(state["epoch"], config.recipe.epochs):
                    record = _epoch(config, trainer, train, test, epoch, sink)
                    best = record["test_top1"] > (summary.test_top1_best or -1.0)
                    summary = _updated(summary, record)
                    run_folder.save(folder, trainer, metrics, summary, best)
            except TrainingError as error:
                summary = replace(summary, status=DIVERGED, reason=str(error), finished=runs.now())
                runs.write_summary(folder, summary)
                raise TrainingError(f"{folder}: {error}") from None
            summary = replace(summary, status=FINISHED, finished=runs.now())
            runs.write_summary(folder, summary)
            console.say(f"{label}{_result(summary)}")
    return summary


def _assemble(config: Config, dataset: data.DataSet, device: torch.device) -> tuple[Loader, Loader, Trainer]:
    """Loaders and trainer of a config, on the device."""
    import torch

    from pgt import models
    from pgt.data.delivery import Delivery
    from pgt.methods import AuthorsHookCrossEntropy, build_loss, build_transform, uniform_epsilon
    from pgt.training import optimizer, schedule
    from pgt.training.loop import Trainer
    from pgt.training.precision import Precision

    recipe, method = config.recipe, config.method
    precision = Precision(config.trainer.precision, device.type)
    delivery = Delivery(
        device, precision.dtype, recipe.global_batch, recipe.local_batch, config.seed, config.data.drop_last
    )
    train, test = dataset.loaders(delivery)
    model = precision.apply(models.build(config.model.name, train.num_classes))
    model = model.to(device, memory_format=torch.channels_last)
    rates = schedule.Rates(
        recipe.lr_start,
        recipe.lr_peak,
        recipe.lr_end,
        recipe.warmup_epochs,
        recipe.epochs,
        recipe.cooldown_epochs,
    )
    if recipe.lr_scaling == "linear":
        rates = rates.scaled(recipe.global_batch / recipe.lr_reference_batch)
    try:
        uniform_epsilon(method.label_smoothing, train.num_classes, method.smoothing)
    except ValueError as error:
        raise InputError(f"method.{error}") from None
    loss = build_loss(method.implementation, method.alpha, method.label_smoothing, method.smoothing)
    decay = {key: value for key, value in asdict(config.schedule).items() if key != "name"}
    trainer = Trainer(
        model=model,
        loss=loss,
        optimizer=optimizer.build(model, recipe.momentum, recipe.weight_decay, fused=device.type == "cuda"),
        schedule=schedule.build(config.schedule.name, recipe.lr_rule, rates, train.steps_per_epoch, **decay),
        transforms=[build_transform(**asdict(transform)) for transform in method.transforms],
        precision=precision,
        scaler=precision.scaler(),
        diagnostics=loss.diagnostics if isinstance(loss, AuthorsHookCrossEntropy) else dict,
    )
    return train, test, trainer


def _data_options(config: Config) -> dict[str, Any]:
    """What `pgt.data.open_set` takes of a config."""
    options = {key: value for key, value in asdict(config.data).items() if key != "drop_last"}
    if config.data.name in data.FOLDERS:
        options["interpolation"] = config.model.interpolation
    return options


def _epoch(config: Config, trainer: Trainer, train: Loader, test: Loader, epoch: int, sink: Any) -> dict[str, Any]:
    """Train and evaluate one epoch; returns its record."""
    from pgt.training.evaluation import evaluate

    trained = trainer.train_epoch(train, epoch, sink, config.trainer.log_every)
    tested = evaluate(trainer.model, test, config.method.alpha, trainer.precision)
    record = {"event": "epoch", "epoch": epoch, **trained, **tested}
    if skipped := [*train.skipped, *test.skipped]:
        names = ", ".join(str(path) for path in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        record |= {"skipped_files": len(skipped), "warning": f"{len(skipped)} unreadable files left out: {names}"}
    sink.write((epoch + 1) * train.steps_per_epoch - 1, record)
    if not math.isfinite(tested["test_loss"]):
        raise TrainingError(f"the test loss is not finite after epoch {epoch + 1}: try a smaller recipe.lr_peak")
    return record


def _updated(summary: Summary, record: dict[str, Any]) -> Summary:
    """The summary after the epoch of `record`."""
    speed, epoch = summary.images_per_second or record["images_per_second"], record["epoch"]
    return replace(
        summary,
        epochs=epoch + 1,
        train_top1=record["train_top1"],
        train_loss=record["train_loss"],
        test_top1_best=max(summary.test_top1_best or 0.0, record["test_top1"]),
        test_top1_final=record["test_top1"],
        test_top5_final=record["test_top5"],
        test_loss=record["test_loss"],
        test_loss_alpha=record["test_loss_alpha"],
        test_logit_norm=record["test_logit_norm"],
        test_ece=record["test_ece"],
        test_ece_alpha=record["test_ece_alpha"],
        skipped_files=record.get("skipped_files", 0),
        images_per_second=speed + (record["images_per_second"] - speed) / (epoch + 1),
    )


def describe(config: Config) -> str:
    """A run in a few words: `demo/nobn gc+pgt α=0.25 seed 0`."""
    name = config.experiment or f"{config.model.name} on {config.data.name}"
    alpha = f" α={config.method.alpha:g}" if config.method.alpha != 1 else ""
    return f"{name} {runs.method_label(schema.identity(config))}{alpha} seed {config.seed}"


def _result(summary: Summary) -> str:
    if summary.status == DIVERGED:
        return f"diverged: {summary.reason}"
    return (
        f"train {summary.train_top1:.2f}%  test {summary.test_top1_final:.2f}%  "
        f"best {summary.test_top1_best:.2f}%  {summary.images_per_second:,.0f} images/s"
    )
