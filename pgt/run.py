"""Config in, run folder out: the one file that knows all parts."""

from __future__ import annotations

import math
import os
import pickle
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgt import config as schema
from pgt import data, environment, layout, run_folder, runs, workers
from pgt.config import Config
from pgt.data import DataSet
from pgt.errors import InputError, TrainingError
from pgt.runs import DIVERGED, FINISHED, Summary
from pgt.sinks import About, Console, Sinks
from pgt.workers import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgt.training.distributed import Ranks
    from pgt.training.loop import Trainer
    from pgt.types import Loader, Sink


CONFIG = "config"
"""Where the first of the ranks that torchrun starts leaves what it composed."""


@dataclass(frozen=True)
class Job:
    """A run that has something left to do: what each of the processes that train it is given.

    Attributes:
        config: checked, resolved, final.
        dataset: that the config names.
        summary: as the run begins.
        folder: of the run.
        label: in front of what is printed, as `[2/18]`.
    """

    config: Config
    dataset: DataSet
    summary: Summary
    folder: Path
    label: str


def run(config: Config, label: str = "") -> Summary:
    """Train one config on this machine, or return what it came to before.

    A finished or diverged run is returned at once (unless `trainer.force`); an interrupted one goes on from
    its last checkpoint.

    Args:
        config: checked by `pgt.validate`.
        label: in front of what is printed, as `[2/18]`.

    Raises:
        InputError: data, checkpoint, devices or folder cannot be used. What a run had come to is kept.
        TrainingError: the loss is no longer finite (the folder says so), or a process has failed.
    """
    job = prepare(config, label)
    if isinstance(job, Summary):
        return job
    count = devices(config)
    if count == 1:
        from pgt.training.distributed import ALONE

        return train(job, ALONE)
    from pgt.training.distributed import lost

    job.folder.mkdir(parents=True, exist_ok=True)
    summary: Summary = workers.run_all(train_in_place, job, count, job.folder, lost)
    return summary


def prepare(config: Config, label: str) -> Job | Summary:
    """What is to be done for a config; its result, where there is one. Starts nothing, writes nothing.

    Raises:
        InputError: as `run`.
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
    return Job(config, dataset, fresh, folder, label)


def devices(config: Config) -> int:
    """How many processes train a config here: `trainer.devices`, or every GPU that its batch can be shared by.

    Raises:
        InputError: there are fewer GPUs.
    """
    import torch

    available, wanted = torch.cuda.device_count(), config.trainer.devices
    if wanted is None:
        return layout.largest(config.recipe, available)
    if available and wanted > available:
        raise InputError(f"trainer.devices={wanted}, but {available} GPUs are visible")
    return wanted


def train_in_place(job: Job, place: Place) -> Summary:
    """`train` as one of the processes that `run` starts."""
    from pgt.training.distributed import joined, meet

    with joined(place, meet(place), job.config.trainer.timeout_minutes) as ranks:
        return train(job, ranks)


def run_as_rank(place: Place, compose: Callable[[], Config]) -> Summary:
    """`run` as one of the processes that torchrun or srun has started.

    Args:
        compose: makes the config; the first rank alone calls it, the others receive what it made.

    Raises:
        InputError, TrainingError: as `run`.
    """
    from pgt.training.distributed import joined, meet

    store = meet(place)
    if place.rank == 0:
        try:
            config = compose()
            layout.check(config.recipe, place.world_size)
        except InputError as error:
            store.set(CONFIG, pickle.dumps(error))
            raise
        store.set(CONFIG, pickle.dumps(config))
    received = pickle.loads(store.get(CONFIG))
    if isinstance(received, InputError):
        received.said = True  # by the first rank
        raise received
    with joined(place, store, received.trainer.timeout_minutes) as ranks:
        job = ranks.share(prepare(received, "") if ranks.first else None)
        if isinstance(job, Summary):
            return job
        if not ranks.first:
            workers.redirect(job.folder, ranks.rank)
        return train(job, ranks)


def train(job: Job, ranks: Ranks) -> Summary:
    """Train a job to its end. Each of the ranks calls it; the first one alone writes and speaks.

    Raises:
        InputError, TrainingError: as `run`.
    """
    import torch

    config = job.config
    _set_up_torch(config)
    torch.manual_seed(config.seed)
    train_loader, test_loader, trainer = _assemble(config, job.dataset, ranks)
    loaders = train_loader, test_loader
    if not ranks.first:
        if (earlier := ranks.share(None)) is not None:
            return earlier
        state = run_folder.resume(job.folder, trainer, ranks.share(None))
        return _epochs(config, trainer, loaders, _continued(job.summary, state), Sinks([]), lambda *_: None)
    job.folder.mkdir(parents=True, exist_ok=True)
    with runs.lock(job.folder):
        now = None if config.trainer.force else runs.read_summary(job.folder)
        if now is not None and now.status in (FINISHED, DIVERGED):  # another process ended it while this one loaded
            _report_earlier(now, job.summary, job.folder, job.label)
            return ranks.share(now)
        ranks.share(None)
        if config.trainer.force:
            run_folder.clear(job.folder)
        state = run_folder.resume(job.folder, trainer, ranks.share(run_folder.load(job.folder)))
        summary = replace(_continued(job.summary, state), world_size=ranks.world_size)
        start = run_folder.record_start(job.folder, config, summary, ranks.device)
        title = f"{job.label}{describe(config)}"
        about = About(summary.run_id, summary.group_id, title, job.folder, asdict(config), start)
        total_steps = config.recipe.epochs * train_loader.steps_per_epoch
        opened = run_folder.sinks(about, total_steps, state["metrics_size"], config.logger.chosen())
        first = state["epoch"] * train_loader.steps_per_epoch
        norms = run_folder.recording(job.folder, trainer, config.record.norms_every, first, total_steps - 1)
        with opened as (sink, console, metrics), norms as recorder:
            _announce(console, title, job, trainer, train_loader, state)
            try:
                save = partial(run_folder.save, job.folder, trainer, metrics)
                summary = _epochs(config, trainer, loaders, summary, sink, save)
            except TrainingError as error:
                kept = runs.read_summary(job.folder) or summary
                runs.write_summary(job.folder, replace(kept, status=DIVERGED, reason=str(error), finished=runs.now()))
                raise TrainingError(f"{job.folder}: {error}") from None
            summary = replace(summary, status=FINISHED, finished=runs.now())
            runs.write_summary(job.folder, summary)
            console.say(f"{job.label}{_result(summary)}")
            if recorder is not None and any(zeroed := recorder.zeroed_out().values()):
                console.say(f"{job.label}{_zeroed(list(zeroed))}")
    return summary


def _continued(fresh: Summary, state: dict[str, Any]) -> Summary:
    """The summary that a checkpoint left, under this program's commit."""
    return Summary(**{**asdict(fresh), **state["summary"], "commit": fresh.commit})


def _announce(console: Console, title: str, job: Job, trainer: Trainer, loader: Loader, state: dict[str, Any]) -> None:
    epoch, world = state["epoch"], trainer.ranks.world_size
    earlier_commit = state["summary"].get("commit", job.summary.commit)
    begin = f", from epoch {epoch + 1}" if epoch else ""
    size = f"{job.config.recipe.epochs} epochs of {loader.steps_per_epoch} steps"
    shared = f" on {world} devices" if world > 1 else ""
    console.say(f"{title}: {size}{shared}{begin}  -> {job.folder}")
    if earlier_commit != job.summary.commit:
        console.say(f"{title}: begun by commit {earlier_commit}, goes on under {job.summary.commit}")


def _epochs(
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


def _set_up_torch(config: Config) -> None:
    """What holds for the whole process."""
    import torch

    if config.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.trainer.deterministic)
    torch.backends.cudnn.benchmark = not config.trainer.deterministic


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


def _assemble(config: Config, dataset: DataSet, ranks: Ranks) -> tuple[Loader, Loader, Trainer]:
    """Loaders and trainer of a config, on the rank's device."""
    import torch

    from pgt import models
    from pgt.data.delivery import Delivery
    from pgt.methods import AuthorsHookCrossEntropy, build_loss, build_transform, uniform_epsilon
    from pgt.training import optimizer, schedule
    from pgt.training.loop import Trainer
    from pgt.training.precision import Precision

    recipe, method, device = config.recipe, config.method, ranks.device
    precision = Precision(config.trainer.precision, device.type)
    delivery = Delivery(
        device,
        precision.dtype,
        recipe.global_batch,
        recipe.local_batch,
        config.seed,
        config.data.drop_last,
        ranks.rank,
        ranks.world_size,
        max(1, environment.cpus() // ranks.local_size),
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
        scaler=precision.scaler(config.trainer.loss_scale, config.trainer.loss_scale_growth_interval),
        ranks=ranks,
        bn_statistics=recipe.bn_statistics,
        accumulating=train.groups_per_step > 1,
        compiled=config.trainer.compile,
        diagnostics=loss.diagnostics if isinstance(loss, AuthorsHookCrossEntropy) else dict,
    )
    return train, test, trainer


def _data_options(config: Config) -> dict[str, Any]:
    """What `pgt.data.open_set` takes of a config."""
    options = {key: value for key, value in asdict(config.data).items() if key != "drop_last"}
    if config.data.name in data.FOLDERS:
        options["interpolation"] = config.model.interpolation
    return options


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
        raise TrainingError(f"the test loss is not finite after epoch {epoch + 1}: try a smaller recipe.lr_peak")
    return record


def _left_out(loaders: tuple[Loader, Loader], ranks: Ranks) -> dict[str, Any]:
    """What a record says of files that could not be read, on any rank."""
    skipped = sorted({path for part in ranks.gather([*loaders[0].skipped, *loaders[1].skipped]) for path in part})
    if not skipped:
        return {}
    names = ", ".join(map(str, skipped[:3])) + (", ..." if len(skipped) > 3 else "")
    return {"skipped_files": len(skipped), "warning": f"{len(skipped)} unreadable files left out: {names}"}


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


def _zeroed(counts: list[int]) -> str:
    layers = ", ".join(f"{index} ({count})" for index, count in enumerate(counts, start=1) if count)
    return f"zeroed-out filters: {sum(counts)}, in convolutions {layers}"
