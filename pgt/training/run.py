"""One run from its config to its folder: what each rank does, and what rank 0 does besides."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pgt import data
from pgt.config import sharing
from pgt.config.identity import group_id, identity, run_id
from pgt.config.schema import Config
from pgt.core import machine
from pgt.core.errors import InputError, TrainingError
from pgt.core.signals import Stop
from pgt.core.streams import redirected
from pgt.core.types import Loader
from pgt.data import DataSet
from pgt.runs import folder as runs
from pgt.runs.console import Console, Screen
from pgt.runs.folder import DIVERGED, FINISHED, Summary
from pgt.runs.labels import method_title
from pgt.runs.mirrors import About
from pgt.runs.sinks import Sinks
from pgt.training import folder as run_folder
from pgt.training.assemble import assemble, set_up_torch
from pgt.training.epochs import train_epochs
from pgt.training.ranks import ALONE, Ranks, check_kernels, process_group, visible_gpus
from pgt.training.trainer import Trainer

OLD_DIGITS = "scikit-learn "
"""How the manifest of the digits began when they came from there: the same images as today's."""


@dataclass(frozen=True)
class Job:
    """A run that is not finished.

    Attributes:
        config: checked and resolved.
        dataset: the one that the config names.
        summary: as the run begins.
        folder: of the run.
        label: printed in front of each message, as `[2/18]`.
    """

    config: Config
    dataset: DataSet
    summary: Summary
    folder: Path
    label: str


def folder_of(config: Config) -> Path:
    """The folder of the config's run."""
    return Path(config.paths.runs) / (config.experiment or "custom") / run_id(identity(config))


def prepare(config: Config, label: str = "") -> Job | Summary:
    """The job of a config, or its summary if it has finished or diverged before. Writes nothing.

    Raises:
        InputError: the data cannot be used, or the run was made from other data.
    """
    dataset = data.open_set(**data_options(config))
    fresh = _new_summary(config, dataset.manifest)
    folder = folder_of(config)
    before = None if config.trainer.force else runs.read_summary(folder)
    if before is not None and before.manifest != fresh.manifest and not before.manifest.startswith(OLD_DIGITS):
        raise InputError(
            f"{folder} was made from other data ({before.manifest}, now {fresh.manifest}): "
            "add another paths.runs=... to keep both, or trainer.force=true to start over"
        )
    if before is not None and before.status in (FINISHED, DIVERGED):
        _report_earlier(before, fresh, folder, label)
        return before
    if before is not None:
        fresh = replace(fresh, started=before.started)  # the checkpoint says what has been measured
    return Job(config, dataset, fresh, folder, label)


def train(prepared: Callable[[], Job | Summary], ranks: Ranks) -> Summary:
    """Train one run to its end. Every rank calls it; rank 0 decides, writes and prints.

    Args:
        prepared: what `prepare` returns. Rank 0 alone calls it.

    Raises:
        InputError: data, checkpoint or folder cannot be used. The folder keeps what it has.
        TrainingError: the loss is no longer finite; the folder says so.
        Stopped: a signal asked to stop; the folder has a checkpoint.
        RankZeroError: on the other ranks, if rank 0 cannot start the run.
    """
    with ExitStack() as stack:
        job = ranks.broadcast_result(prepared)
        if isinstance(job, Summary):
            return job
        ranks.set_timeout(job.config.trainer.timeout_minutes)
        if not ranks.first:
            stack.enter_context(redirected(job.folder / f"log.rank{ranks.rank}.txt"))
        check_kernels(ranks.device)
        set_up_torch(job.config)
        torch.manual_seed(job.config.seed)
        train_loader, test_loader, trainer = assemble(job.config, job.dataset, ranks)
        for loader in (train_loader, test_loader):
            stack.callback(loader.close)
        checkpoint = ranks.broadcast_result(lambda: _claim(job, stack))
        if isinstance(checkpoint, Summary):
            return checkpoint
        state = run_folder.resume(job.folder, trainer, train_loader, checkpoint)
        summary = replace(_continued(job.summary, state), world_size=ranks.world_size)
        stop = stack.enter_context(Stop())
        if ranks.first:
            return _train_and_write(job, trainer, (train_loader, test_loader), summary, state, stop)
        return train_epochs(
            job.config, trainer, (train_loader, test_loader), summary, Sinks([]), lambda *checkpoint: None, stop
        )


def train_as_rank(prepared: Callable[[], Job | Summary]) -> Summary:
    """`train` as the rank that torchrun's environment variables name, whoever has set them.

    Raises:
        LostRankError: another rank no longer answers; the rest as `train`.
    """
    with process_group() as ranks:
        return train(prepared, ranks)


def train_job_as_rank(job: Job) -> Summary:
    """`train_as_rank` for a job that is prepared already."""
    return train_as_rank(lambda: job)


def train_alone(job: Job) -> Summary:
    """`train` in this process, which then gives back the GPU memory: the next run may train in other processes."""
    try:
        return train(lambda: job, ALONE)
    finally:
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()


def device_count(config: Config) -> int:
    """The number of ranks for a config on this machine: `trainer.devices`, or as many GPUs as can share its batch.

    Raises:
        InputError: there are fewer GPUs, or torch cannot use them.
    """
    available, wanted = visible_gpus(), config.trainer.devices
    if wanted is None:
        return sharing.largest(config.recipe, available)
    if available and wanted > available:
        raise InputError(f"trainer.devices={wanted}, but {available} GPUs are visible")
    return wanted


def _claim(job: Job, stack: ExitStack) -> dict[str, Any] | Summary | None:
    """Lock the run's folder and load its last checkpoint, if it has one; or its summary, if it has ended meanwhile.

    Args:
        stack: holds the lock.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(runs.lock(job.folder))
    if job.config.trainer.force:
        run_folder.clear(job.folder)
    latest = runs.read_summary(job.folder)
    if latest is not None and latest.status in (FINISHED, DIVERGED):
        _report_earlier(latest, job.summary, job.folder, job.label)
        return latest
    return run_folder.load(job.folder)


def _train_and_write(
    job: Job,
    trainer: Trainer,
    loaders: tuple[Loader, Loader],
    summary: Summary,
    state: dict[str, Any],
    stop: Stop,
) -> Summary:
    """Train on rank 0, and write and print what comes of it."""
    config, steps = job.config, loaders[0].steps_per_epoch
    start = run_folder.record_start(job.folder, config, summary, trainer.ranks.device)
    title = f"{job.label}{describe(config)}"
    total_steps = config.recipe.epochs * steps
    first_step = min(state["step"], (summary.epochs + 1) * steps - 1)  # an epoch's record counts as its last step
    about = About(summary.run_id, summary.group_id, title, job.folder, config.model_dump(), start, first_step)
    with (
        run_folder.sinks(about, total_steps, state["metrics_size"], config.logger.chosen()) as (sink, console, metrics),
        run_folder.recording(
            job.folder, trainer, config.record.norms_every, state["step"], total_steps - 1
        ) as recorder,
    ):
        _announce(console, title, job, trainer, loaders[0], state)
        save = partial(run_folder.save, job.folder, recorder, metrics)
        try:
            summary = train_epochs(config, trainer, loaders, summary, sink, save, stop)
        except TrainingError as error:
            kept = runs.read_summary(job.folder) or summary
            runs.write_summary(job.folder, replace(kept, status=DIVERGED, reason=str(error), finished=machine.now()))
            raise TrainingError(f"{job.folder}: {error}") from None
        summary = replace(summary, status=FINISHED, finished=machine.now())
        runs.write_summary(job.folder, summary)
        console.say(f"{job.label}{_result(summary)}")
        if recorder is not None and any(zeroed := recorder.zeroed_out().values()):
            console.say(f"{job.label}{_zeroed(list(zeroed))}")
    return summary


def _continued(fresh: Summary, state: dict[str, Any]) -> Summary:
    """The checkpoint's summary, with this program's commit."""
    return Summary(**{**asdict(fresh), **state["summary"], "commit": fresh.commit})


def _announce(console: Console, title: str, job: Job, trainer: Trainer, loader: Loader, state: dict[str, Any]) -> None:
    world = trainer.ranks.world_size
    earlier_commit = state["summary"].get("commit", job.summary.commit)
    epoch, step = divmod(state["step"], loader.steps_per_epoch)
    begin = f", from epoch {epoch + 1}" if state["step"] else ""
    if step:
        begin += f", step {step + 1}"
    elif state["step"] and epoch > state["summary"]["epochs"]:
        begin = f", from the evaluation of epoch {epoch}"
    size = f"{job.config.recipe.epochs} epochs of {loader.steps_per_epoch} steps"
    shared = f" on {world} devices" if world > 1 else ""
    console.say(f"{title}: {size}{shared}{begin}  -> {job.folder}")
    if earlier_commit != job.summary.commit:
        console.say(f"{title}: begun by commit {earlier_commit}, goes on under {job.summary.commit}")


def _new_summary(config: Config, manifest: str) -> Summary:
    values = identity(config)
    return Summary(
        run_id=run_id(values),
        group_id=group_id(values),
        experiment=config.experiment,
        identity=values,
        seed=config.seed,
        manifest=manifest,
        commit=machine.commit(),
        started=machine.now(),
    )


def _report_earlier(before: Summary, fresh: Summary, folder: Path, label: str) -> None:
    other = f", by commit {before.commit}; this is {fresh.commit}" if before.commit != fresh.commit else ""
    again = "; trainer.force=true starts over" if before.status == DIVERGED else ""
    text = f"{label}{folder}: {before.status} earlier{other}{again}\n{label}{_result(before)}"
    Screen().print(text, markup=False)


def data_options(config: Config) -> dict[str, Any]:
    """The arguments of `pgt.data.open_set` that a config gives."""
    options = {key: value for key, value in config.data.model_dump().items() if key != "drop_last"}
    if config.data.name in data.FOLDERS:
        options["interpolation"] = config.model.interpolation
    return options


def describe(config: Config) -> str:
    """The title of a run: `demo/nobn gc+pgt α=0.25 seed 0`."""
    name = config.experiment or f"{config.model.name} on {config.data.name}"
    return f"{name} {method_title(identity(config))} seed {config.seed}"


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
