"""One run from its config to its folder: what each rank does, and what rank 0 does besides."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pgt.config import sharing
from pgt.config.schema import Config
from pgt.core import machine
from pgt.core.errors import InputError, TrainingError
from pgt.core.signals import Stop
from pgt.core.streams import redirected
from pgt.core.types import Loader
from pgt.core.words import counted
from pgt.runs import folder as runs
from pgt.runs.console import Console
from pgt.runs.folder import DIVERGED, ENDED, FINISHED, Summary
from pgt.runs.sinks import Sinks
from pgt.runs.trackers import About
from pgt.training import device_memory, own
from pgt.training import folder as run_folder
from pgt.training.assemble import assemble, set_up_torch
from pgt.training.epochs import train_epochs
from pgt.training.job import Job, describe, prepare, report_earlier, result_line
from pgt.training.ranks import ALONE, Ranks, check_kernels, process_group, visible_gpus
from pgt.training.trainer import Trainer


def train(job: Job, ranks: Ranks = ALONE) -> Summary:
    """Train one run to its end. Every rank calls it; rank 0 decides, writes and prints.

    Raises:
        InputError: data, checkpoint or folder cannot be used. The folder keeps what it has.
        TrainingError: the loss is no longer finite; the folder says so.
        Stopped: a signal asked to stop; the folder has a checkpoint.
        RankZeroError: on the other ranks, if rank 0 cannot start the run.
    """
    with ExitStack() as stack:
        check_kernels(ranks.device)
        set_up_torch(job.config)
        torch.manual_seed(job.config.seed)
        stack.enter_context(own.explained(job.config))
        stack.enter_context(device_memory.explained(job.config, ranks.device))
        train_loader, test_loader, trainer = assemble(job.config, job.dataset, ranks)
        for loader in (train_loader, test_loader):
            stack.callback(loader.close)
        checkpoint = ranks.broadcast_result(lambda: _claim(job, stack))
        if isinstance(checkpoint, Summary):
            return checkpoint
        state = run_folder.resume(job.folder, trainer, train_loader, checkpoint)
        del checkpoint  # weights and momentum, which every rank would keep in the host's memory until the run ends
        now = {"commit": job.summary.commit, "world_size": ranks.world_size}
        summary = replace(job.summary, **{**state["summary"], **now})
        stop = stack.enter_context(Stop())
        if ranks.first:
            return _train_and_write(job, trainer, (train_loader, test_loader), summary, state, stop)
        return train_epochs(
            job.config, trainer, (train_loader, test_loader), summary, Sinks([]), lambda *checkpoint: None, stop
        )


def train_as_rank(compose: Callable[[], Config]) -> Summary:
    """`train` as the rank that torchrun's environment variables name, if rank 0 alone knows the config.

    Args:
        compose: makes and checks the config. Rank 0 alone calls it.

    Raises:
        LostRankError: another rank no longer answers; the rest as `train`.
    """
    with process_group() as ranks:
        config = ranks.broadcast_result(compose)
        ranks.set_timeout(config.trainer.timeout_minutes)  # before rank 0 lists the data, which may take long
        job = ranks.broadcast_result(lambda: prepare(config))
        if isinstance(job, Summary):
            return job
        with _own_log(job, ranks.rank):
            return train(job, ranks)


def train_job_as_rank(job: Job) -> Summary:
    """`train` as the rank that torchrun's environment variables name, if every rank is given the job."""
    with _own_log(job, int(os.environ["RANK"])), process_group(job.config.trainer.timeout_minutes) as ranks:
        return train(job, ranks)


def _own_log(job: Job, rank: int) -> AbstractContextManager[None]:
    """A context in which a later rank prints to a file of the run's folder. Rank 0 prints on the screen."""
    return redirected(job.folder / f"log.rank{rank}.txt") if rank else nullcontext()


def give_back_memory() -> None:
    """Free what runs before this one have left on the GPU: cycles of hooks, and torch's cache if ranks train next."""
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
        return sharing.sensible(config.recipe, available)
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
        run_folder.clear(job.folder, job.config.logger.chosen())
    latest = runs.read_summary(job.folder)
    if latest is not None and latest.status in ENDED:
        report_earlier(job.config, latest, job.summary, job.folder, job.label)
        return latest
    runs.read_starts(job.folder)  # damaged, it is refused before a rank waits for another one
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
    about = About(summary, job.folder, config.model_dump(by_alias=True), start, first_step, resumed=state["step"] > 0)
    with (
        run_folder.sinks(about, title, total_steps, state["metrics_size"], config.logger.chosen()) as opened,
        run_folder.recording(
            job.folder, trainer, config.record.norms_every, state["step"], total_steps - 1
        ) as recorder,
    ):
        sink, console, metrics = opened
        _announce(console, title, job, trainer, loaders[0], state)
        save = partial(run_folder.save, job.folder, recorder, metrics)
        try:
            summary = train_epochs(config, trainer, loaders, summary, sink, save, stop)
        except TrainingError as error:
            kept = runs.read_summary(job.folder) or summary
            run_folder.end(job.folder, replace(kept, status=DIVERGED, reason=str(error), finished=machine.now()))
            raise TrainingError(f"{job.folder}: {error}") from None
        summary = replace(summary, status=FINISHED, finished=machine.now())
        run_folder.end(job.folder, summary)
        console.say(f"{job.label}{result_line(summary)}")
        if recorder is not None and any(zeroed := recorder.zeroed_out().values()):
            console.say(f"{job.label}{_zeroed(list(zeroed))}")
    return summary


def _announce(console: Console, title: str, job: Job, trainer: Trainer, loader: Loader, state: dict[str, Any]) -> None:
    world = trainer.ranks.world_size
    earlier_commit = state["summary"].get("commit", job.summary.commit)
    epoch, step = divmod(state["step"], loader.steps_per_epoch)
    begin = f", from epoch {epoch + 1}" if state["step"] else ""
    if step:
        begin += f", step {step + 1}"
    elif state["step"] and epoch > state["summary"]["epochs"]:
        begin = f", from the evaluation of epoch {epoch}"
    size = f"{counted(job.config.recipe.epochs, 'epoch')} of {counted(loader.steps_per_epoch, 'step')}"
    shared = f" on {world} devices" if world > 1 else ""
    workers = f", {counted(loader.workers, 'data worker')}" + " each" * (world > 1) if loader.workers else ""
    console.say(f"{title}: {size}{shared}{workers}{begin}  -> {job.folder}")
    for line in filter(None, (alteration.describe() for alteration in trainer.alterations)):
        console.say(f"{title}: {line}")
    if state["warning"]:
        console.say(f"{title}: warning: {state['warning']}")
    if earlier_commit != job.summary.commit:
        console.say(f"{title}: begun by commit {earlier_commit}, goes on under {job.summary.commit}")


def _zeroed(counts: list[int]) -> str:
    layers = ", ".join(f"{index} ({count})" for index, count in enumerate(counts, start=1) if count)
    return f"zeroed-out filters: {sum(counts)}, in convolutions {layers}"
