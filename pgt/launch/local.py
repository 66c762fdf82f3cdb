"""`hydra/launcher=local`: jobs side by side on this machine, each in a process with GPUs and CPUs of its own."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

from rich.live import Live
from rich.table import Table

from pgt.core import machine
from pgt.core.errors import InputError, LostRankError, Stopped, TrainingError
from pgt.core.signals import STOP_SIGNALS, Stop
from pgt.core.streams import redirected
from pgt.core.words import counted
from pgt.launch.one_job import LaunchedJob, note, train_job
from pgt.launch.processes import GOES_ON, Worker, done, end_workers, outcome_of, send_signal, start_worker
from pgt.runs.console import Screen, line
from pgt.runs.folder import FINISHED, UNFINISHED, last_record, read_failure, read_summary
from pgt.runs.sweeps import link
from pgt.training.job import describe, result_line


@dataclass(frozen=True)
class Slot:
    """The share of the machine that one job uses.

    Attributes:
        cpus: their numbers.
        gpus: the value of CUDA_VISIBLE_DEVICES; empty for none.
    """

    cpus: frozenset[int]
    gpus: str


def launch(
    jobs: Sequence[LaunchedJob], sweep: Path, *, gpus_per_job: int | None, cpus_per_job: int | None
) -> list[float]:
    """Train jobs, as many side by side as the machine has room for; returns the objective of each.

    A job that fails does not stop the others.

    Args:
        sweep: the folder of the sweep, which gets a log of each job.
        gpus_per_job, cpus_per_job: see conf/hydra/launcher/local.yaml.

    Raises:
        InputError: the machine does not have what a job is to get, or a job asks for more GPUs than it gets.
        Stopped: this process was asked to stop; every job that was training has stopped in order.
    """
    # A container's quota limits the time, and names no CPUs. Those of two containers should seldom be the same.
    cpus = SystemRandom().sample(sorted(machine.affinity()), machine.cpus())
    free = slots(sorted(cpus), _gpus(), gpus_per_job, cpus_per_job)
    gpus = len(free[0].gpus.split(",")) if free[0].gpus else 0
    devices = max(job.config.trainer.devices or 1 for job in jobs)
    if 0 < gpus < devices:
        has = f"each job gets {counted(gpus, 'GPU')}"
        raise InputError(f"trainer.devices={devices}, but {has}: add hydra.launcher.gpus_per_job={devices}")
    for job in jobs:
        link(sweep, job.number, job.folder)
    results = _SideBySide(sweep, free).train(jobs)
    return [results.get(job.number, math.nan) for job in jobs]  # one that was asked to stop by itself has none


def slots(cpus: Sequence[int], gpus: Sequence[str], gpus_per_job: int | None, cpus_per_job: int | None) -> list[Slot]:
    """Divide a machine among jobs.

    Args:
        cpus: numbers of the CPUs that may be used.
        gpus: names of the GPUs that may be used.
        gpus_per_job, cpus_per_job: see conf/hydra/launcher/local.yaml.

    Raises:
        InputError: it has not enough for one job.
    """
    own_gpus = min(1, len(gpus)) if gpus_per_job is None else gpus_per_job
    if own_gpus > len(gpus):
        raise InputError(f"hydra.launcher.gpus_per_job={own_gpus}, but this machine has {counted(len(gpus), 'GPU')}")
    if (cpus_per_job or 0) > len(cpus):
        raise InputError(
            f"hydra.launcher.cpus_per_job={cpus_per_job}, but this machine has {counted(len(cpus), 'CPU')}"
        )
    by_gpus = len(gpus) // own_gpus if own_gpus else len(cpus)
    own_cpus = cpus_per_job or max(1, len(cpus) // by_gpus)
    count = min(by_gpus, len(cpus) // own_cpus)
    return [
        Slot(
            frozenset(cpus[index * own_cpus : (index + 1) * own_cpus]),
            ",".join(gpus[index * own_gpus : (index + 1) * own_gpus]),
        )
        for index in range(count)
    ]


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    from pgt.training.ranks import visible_gpus

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(index) for index in range(visible_gpus())])[: visible_gpus()]


def work(given: tuple[LaunchedJob, Slot, Path]) -> float:
    """Train a job in a slot of the machine; returns its objective. What it prints goes to a file, its log."""
    job, slot, log = given
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, slot.cpus)
    sys.argv = job.command
    with redirected(log):
        return train_job(job.config, job.folder, job.label, waits=True)


class _SideBySide:
    """The jobs of a sweep that train side by side.

    Args:
        sweep: the folder of the sweep.
        free: the parts of the machine that jobs get.
    """

    def __init__(self, sweep: Path, free: Sequence[Slot]) -> None:
        self._sweep, self._free = sweep, list(free)
        self._running: dict[int, tuple[LaunchedJob, Slot, Worker]] = {}
        self._results: dict[int, float] = {}
        self._screen = Screen()

    def train(self, jobs: Sequence[LaunchedJob]) -> dict[int, float]:
        """Train jobs; returns the objectives by the numbers of the jobs.

        Raises:
            Stopped: this process was asked to stop.
        """
        waiting, asked = list(jobs), False
        many = f"at most {len(self._free)} side by side"
        self._screen.print(f"{counted(len(jobs), 'run')}, {many}, logs in {os.path.relpath(self._sweep)}", markup=False)
        with Stop() as stop, self._live() as live:
            try:
                while self._running or (waiting and not stop.wanted):
                    while waiting and self._free and not stop.wanted:
                        self._start(waiting.pop(0))
                    if stop.wanted and not asked:
                        asked = True
                        for _, _, (process, _) in self._running.values():
                            send_signal(process, STOP_SIGNALS[0])
                    self._collect(bool(stop.wanted))
                    if live is not None:
                        live.update(self._table(len(waiting)))
            finally:
                end_workers([worker for _, _, worker in self._running.values()])
            if stop.wanted and len(self._results) < len(jobs):
                raise Stopped(stop.wanted, f"with {len(self._results)} of {len(jobs)} runs done")
        return self._results

    def _start(self, job: LaunchedJob) -> None:
        slot = self._free.pop(0)
        given = job, slot, self._sweep / f"{job.number}.log"
        worker = start_worker(work, given, {"CUDA_VISIBLE_DEVICES": slot.gpus}, "its process")
        self._running[job.number] = job, slot, worker

    def _collect(self, stopping: bool) -> None:
        """Wait a little for jobs to end, and say how they did."""
        for number in done({number: worker for number, (_, _, worker) in self._running.items()}):
            job, slot, worker = self._running.pop(number)
            outcome = outcome_of(worker)
            end_workers([worker])
            self._free.append(slot)
            if isinstance(outcome, Stopped):
                self._say(job, f"stopped {outcome.place}")
            elif isinstance(outcome, Exception) and stopping:
                self._say(job, "stopped while it started")
            else:
                if isinstance(outcome, Exception):
                    lost = isinstance(outcome, LostRankError)  # how NCCL ends a process
                    why = f"its process {outcome}; {GOES_ON}" if lost else str(outcome)
                    note(job.folder, TrainingError(why), job.command)
                self._results[number] = math.nan if isinstance(outcome, Exception) else outcome
                self._say(job, _end(job.folder))

    def _say(self, job: LaunchedJob, what: str) -> None:
        self._screen.print(f"{job.label}{describe(job.config)}: {what}  -> {job.folder}", markup=False)

    def _live(self) -> AbstractContextManager[Live | None]:
        return Live(console=self._screen, transient=True) if self._screen.is_terminal else nullcontext()

    def _table(self, waiting: int) -> Table:
        """The jobs that train, a line each, and how many others there are."""
        shown = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for job, _, _ in self._running.values():
            record = last_record(job.folder)
            shown.add_row(job.label.strip(), describe(job.config), line(record) if record else "starts")
        shown.add_row("", f"{len(self._results)} ended, {waiting} waiting", "")
        return shown


def _end(folder: Path) -> str:
    """One line that says how a run has ended."""
    try:
        summary, failure = read_summary(folder), read_failure(folder)
    except InputError as error:
        return f"failed: {error}"
    if failure is not None and (summary is None or summary.status != FINISHED):
        return f"failed: {failure.reason.removeprefix(f'{folder}: ').splitlines()[-1]}"
    if summary is not None and summary.status == UNFINISHED:
        return "not finished; its log says why"
    return result_line(summary) if summary is not None else "refused; its log says why"
