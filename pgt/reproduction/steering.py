"""Ends the runs of an experiment that are queued or running, and finds the commands of those that failed."""

from __future__ import annotations

import os
import platform
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pgt.config.grammar import key_of
from pgt.reproduction.status import FAILED, QUEUED, REFUSED, RUNNING, standings
from pgt.runs import sweeps
from pgt.runs.folder import LOCK, read_failure


def cancel(root: Path, experiment: str) -> Iterator[str]:
    """End what is queued or running of an experiment; yields a line for each job and process that it has ended.

    Slurm cancels its jobs. Processes of this machine get SIGTERM, those that start the jobs of a sweep first: that
    sweep ends as a whole. Runs that train stop after their step and save.

    Args:
        experiment: its name, or a folder of several.

    Raises:
        InputError: Slurm does not answer.
    """
    going = [one for one in standings(root, experiment, must_know=True) if one.status in (QUEUED, RUNNING)]
    submitted = {one.job: one.run for one in going if one.job}
    sweeps.cancel([*submitted])
    yield from (f"cancelled job {job}: {run}" for job, run in submitted.items())
    here = {one.run: one.process for one in going if not one.job}
    starters = [sweep for sweep in sweeps.read_sweeps(root) if sweep.process]
    starts = {root / run: sweep.process for sweep in starters for run in sweep.runs if root / run in here}
    holds = {process: run for run, process in here.items()} | {sweep.process: sweep.folder for sweep in starters}
    for process in dict.fromkeys([*starts.values(), *here.values()]):
        runs = [run for run, own in here.items() if process in (starts.get(run), own)]
        yield f"{_end(process, holds[process])}: {', '.join(map(str, runs))}"


def _end(process: str, folder: Path) -> str:
    """Send SIGTERM to the process that holds a folder, if it is one of this machine; returns what was done.

    Args:
        process: as `pgt.runs.folder.lock` names it.
        folder: of a run or of a sweep.
    """
    found = re.fullmatch(r"(.*), process (\d+)", process)
    if found is None or found[1] != platform.node():
        return f"not stopped, since it is on another machine ({process})"
    number = int(found[2])
    try:
        if not _has_open(number, folder / LOCK):
            return f"not stopped, since it is in another container ({process})"
        os.kill(number, signal.SIGTERM)
    except OSError as error:
        return f"not stopped ({process}: {error.strerror})"
    return f"asked to stop ({process})"


def _has_open(number: int, path: Path) -> bool:
    """Whether a process has a file open: a container may share the machine's name and number its processes anew."""
    opened = Path("/proc", str(number), "fd")
    if not Path("/proc/self/fd").is_dir():  # macOS
        return True
    return opened.is_dir() and any(link.resolve() == path.resolve() for link in opened.iterdir())


def retries(root: Path, experiment: str) -> dict[tuple[str, ...], int]:
    """The commands that trained, or were to train, the failed and refused runs of an experiment, and how many of them.

    They are without `trainer.force`, which would train finished runs again, too.

    Args:
        experiment: its name, or a folder of several.

    Raises:
        InputError: Slurm does not answer.
    """
    failures = [
        read_failure(one.run) for one in standings(root, experiment, must_know=True) if one.status in (FAILED, REFUSED)
    ]
    commands = [failure.command for failure in failures if failure]
    return Counter(
        tuple(word for word in words if "=" not in word or key_of(word) != "trainer.force") for words in commands
    )
