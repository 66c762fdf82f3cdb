"""One job of a command line, whatever launcher trains it: its run, its objective, and how it has ended."""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pgt.config.schema import Config
from pgt.core.errors import HeldError, InputError, Stopped, TrainingError, exit_code, expected
from pgt.core.signals import Stop
from pgt.launch.run import run
from pgt.runs.folder import (
    DIVERGED,
    ENDED,
    FINISHED,
    Failure,
    Summary,
    held,
    holder,
    read_failure,
    read_summary,
    write_failure,
)
from pgt.runs.sweeps import link

POLL_SECONDS = 2.0
"""Time between two looks at a run that another process trains."""


@dataclass(frozen=True)
class Sweep:
    """The command line that a job belongs to.

    Attributes:
        total: number of jobs, if it is known.
        command: the words that each run's environment.json shows as its command.
    """

    total: int | None
    command: list[str]


@dataclass(frozen=True)
class LaunchedJob:
    """A job for a launcher to train or to submit.

    Attributes:
        number: of the job in its sweep, counted from 0.
        label: printed in front of each message.
        config: checked.
        folder: the folder of its run.
        command: the words that its environment.json shows as its command.
    """

    number: int
    label: str
    config: Config
    folder: Path
    command: list[str]


def worst_if_nan(value: float) -> float:
    """The objective that a sweeper is given: 0, the worst accuracy, instead of NaN, which would end optuna's search."""
    return 0.0 if math.isnan(value) else value


def refused(sweep: Path, number: int, label: str, error: Exception) -> float:
    """Print why a job of a sweep has no run, and note it in the sweep's folder; returns its objective, NaN."""
    failed(None, label, error)
    link(sweep, number, sweep / "refused")  # a folder that does not exist: `code_in` reads that as bad input
    return math.nan


def train_job(config: Config, folder: Path, label: str, waits: bool) -> float:
    """Train one job of a sweep; returns its objective, NaN if there is none. If it fails, its run folder says why.

    Args:
        folder: of its run.
        waits: if another process trains the run, wait for it; otherwise put the run off.
    """
    if Stop.unanswered:
        raise Stopped(Stop.unanswered, "between two runs")
    try:
        while True:
            try:
                if process := holder(folder):
                    raise held(folder, process)
                return objective(run(config, label))
            except HeldError as error:
                if not waits:
                    print(f"{label}is put off to the end of the sweep: {error}", flush=True)
                    return math.nan
                _wait(folder, label)
    except Exception as error:  # an unexpected one, too: the other runs of the sweep go on
        failed(folder, label, error)
    return math.nan


def failed(folder: Path | None, label: str, error: Exception) -> None:
    """Print why a job has failed, and note it in its run's folder, if that is known."""
    known = expected(error)
    if known:
        print(f"pgt: {label}{known}", file=sys.stderr)
    else:
        traceback.print_exc()
    if folder is not None:
        note(folder, error, sys.argv)


def note(folder: Path, error: Exception, command: Sequence[str]) -> None:
    """Note in a run's folder why it failed, unless another process goes on with it.

    Args:
        command: the command line that the job belonged to, word by word.
    """
    if isinstance(error, HeldError):
        return
    known = expected(error)
    reason = str(known) if known else "".join(traceback.format_exception_only(error)).strip()
    with suppress(OSError, InputError):  # the disk may be full
        write_failure(folder, Failure(exit_code(error), reason, list(command)))


def _wait(folder: Path, label: str) -> None:
    """Wait until no process holds a run's folder."""
    if process := holder(folder):
        print(f"{label}waits for {folder}, which another process trains ({process})", flush=True)
    while holder(folder):
        time.sleep(POLL_SECONDS)


def objective(summary: Summary) -> float:
    """The best test top-1 of a run in percent, which a sweeper may optimise; NaN if it has none."""
    return math.nan if summary.status == DIVERGED or summary.test_top1_best is None else summary.test_top1_best


def objective_in(folder: Path) -> float:
    """The objective of a run that was trained elsewhere; NaN if it has none."""
    summary = read_summary(folder)
    return math.nan if summary is None else objective(summary)


def label(number: int, total: int | None) -> str:
    """`[2/18] ` for job 1, counted from 0, of 18 jobs; empty for the only one."""
    return "" if total == 1 else f"[{number + 1}{f'/{total}' if total else ''}] "


def ended(folder: Path) -> bool:
    """Whether a run has finished or diverged."""
    summary = read_summary(folder)
    return summary is not None and summary.status in ENDED


def code_in(folder: Path) -> int:
    """The exit code of a job, read from its run's folder: 0 if the run has finished."""
    try:
        summary = read_summary(folder)
    except InputError as error:
        print(f"pgt: {error}", file=sys.stderr)
        return error.exit_code
    if summary is not None and summary.status == FINISHED:
        return 0
    if failure := read_failure(folder):
        return failure.code
    return TrainingError.exit_code if folder.is_dir() else InputError.exit_code
