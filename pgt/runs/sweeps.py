"""Sweeps: their folders, with a list of their runs and links to them, and what Slurm's queue holds of them."""

from __future__ import annotations

import json
import os
import re
import subprocess  # nosec B404  # only for Slurm's commands, without a shell
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pgt.core.errors import InputError
from pgt.core.files import write_json
from pgt.runs.folder import holder
from pgt.runs.labels import method_label

FOLDER = ".sweeps"
"""Name of the folder in the runs folder that holds a folder for each sweep."""

LIST = "sweep.json"
"""In the folder of a sweep: its command and its runs, written before its first job begins."""

COMMAND = "command.json"
"""In a folder that a command line names for its sweep: the words of that command line."""


@dataclass(frozen=True)
class SweepList:
    """The list of a sweep's runs, as `write_list` has written it.

    Attributes:
        folder: of the sweep.
        command: `pgt train` and its words.
        runs: the folder of each run, relative to the runs folder, with its `method`, `alpha` and `seed`.
        started: seconds since the epoch.
        process: the one that starts its jobs, as `holder` names it; empty if it has ended.
    """

    folder: Path
    command: list[str]
    runs: dict[Path, dict[str, Any]]
    started: float
    process: str


def write_list(sweep: Path, command: Sequence[str], runs: Mapping[Path, Mapping[str, Any]]) -> None:
    """Write the list of a sweep's runs into its folder, which may not be there yet.

    A sweep that goes in steps adds those of each step. The time of the file stays that of the first one.

    Args:
        command: `pgt train` and its words.
        runs: the identity of each run (see `pgt.config.identity`) by its folder.
    """
    listed = {
        os.path.relpath(run.absolute(), sweep.absolute()): {
            "method": method_label(identity),
            "alpha": identity["method"]["alpha"],
            "seed": identity["seed"],
        }
        for run, identity in runs.items()
    }
    sweep.mkdir(parents=True, exist_ok=True)
    path = sweep / LIST
    begun = path.stat() if path.exists() else None
    before: dict[str, Any] = {}
    with suppress(OSError, ValueError, KeyError):  # there is none, or it is damaged
        before = json.loads(path.read_text())["runs"]
    write_json(path, {"command": list(command), "runs": before | listed})
    if begun:
        os.utime(path, ns=(begun.st_atime_ns, begun.st_mtime_ns))


def read_sweeps(root: Path) -> list[SweepList]:
    """The sweeps of a runs folder that have a list of their runs, the first one first."""
    found = []
    for path in sorted((root / FOLDER).glob(f"*/{LIST}")):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # a sweep that someone removes now
            values, sweep = json.loads(path.read_text()), path.parent
            inner = sweep.relative_to(root)
            runs = {Path(os.path.normpath(inner / run)): dict(about) for run, about in values["runs"].items()}
            found.append(SweepList(sweep, list(values["command"]), runs, path.stat().st_mtime, holder(sweep)))
    return found


def new_sweep(root: Path) -> Path:
    """Make the folder of a new sweep in a runs folder, which all machines that train can reach; returns it."""
    name = datetime.now(UTC).strftime("%Y-%m-%d-%H-%M-%S")
    number = 0
    while True:
        folder = root.absolute() / FOLDER / (f"{name}-{number}" if number else name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another sweep began in the same second
            number += 1
        else:
            return folder


def claim(sweep: Path, command: Sequence[str]) -> None:
    """Take a folder that a command line names for its sweep. The same words take it again, and the sweep goes on.

    Args:
        command: `pgt train` and its words.

    Raises:
        InputError: it holds links or code of another command's sweep, which this one's jobs would take for their own.
    """
    sweep.mkdir(parents=True, exist_ok=True)
    try:
        before = json.loads((sweep / COMMAND).read_text())
    except (OSError, ValueError):
        before = None
    if before != list(command) and any(re.fullmatch(r"\d+|code|array\d+", path.name) for path in sweep.iterdir()):
        raise InputError(f"hydra.sweep.dir={sweep} has the jobs of another command: name a new folder, or leave it out")
    (sweep / LIST).unlink(missing_ok=True)  # of the last time
    write_json(sweep / COMMAND, list(command))


def link(sweep: Path, number: int, run: Path) -> None:
    """Note that job `number` of a sweep trains a run."""
    sweep.mkdir(parents=True, exist_ok=True)
    new = sweep / f".{number}.{os.getpid()}"
    new.symlink_to(os.path.relpath(run.absolute(), sweep.absolute()))
    new.replace(sweep / str(number))  # an older link if the job was requeued, or a search goes on with other values


def runs_of(sweep: Path) -> dict[int, Path]:
    """The run folders of a sweep by the numbers of their jobs. Some may not be there yet."""
    links = [path for path in sweep.iterdir() if path.name.isdecimal() and path.is_symlink()]
    return {int(path.name): Path(os.path.normpath(sweep / path.readlink())) for path in links}


@dataclass(frozen=True)
class SlurmJob:
    """A job of Slurm's queue.

    Attributes:
        id: `12`, or `12_3` in an array.
        running: whether it trains; otherwise it waits, or is ending.
        ending: whether it has been left by its processes. Slurm may requeue it, and does not tell.
    """

    id: str
    running: bool
    ending: bool = False


def queued(ending: bool = False) -> dict[Path, SlurmJob]:
    """The runs that jobs of this user in Slurm's queue train or are to train, with these jobs.

    The comment of a job is a folder whose links, named by the numbers of the array's jobs, lead to the runs. Without
    Slurm there are none.

    Args:
        ending: also those of jobs that are ending, since some may have been requeued.

    Returns:
        A job by the run's folder, which is absolute and resolved.

    Raises:
        InputError: Slurm does not answer.
    """
    shown = ask_slurm("squeue", "--me", "--array", "--noheader", "--format=%i|%T|%k")
    found: dict[Path, SlurmJob] = {}
    arrays: dict[str, dict[int, Path]] = {}
    for text in shown.splitlines():
        job, state, comment = text.split("|", 2)
        ends = state == "COMPLETING"
        if (ends and not ending) or not re.search(r"/array\d+$", comment):
            continue
        if comment not in arrays:
            runs = runs_of(Path(comment)) if Path(comment).is_dir() else {}
            parents = {run.parent: run.parent.resolve() for run in runs.values()}
            arrays[comment] = {number: parents[run.parent] / run.name for number, run in runs.items()}
        run = arrays[comment].get(int(job.partition("_")[2] or 0))
        if run is not None:
            found[run] = SlurmJob(job, state == "RUNNING", ends)
    return found


def cancel(ids: Sequence[str]) -> None:
    """Let Slurm end jobs, or take them from its queue. A run that trains stops in order.

    Raises:
        InputError: Slurm does not answer.
    """
    for start in range(0, len(ids), 500):
        ask_slurm("scancel", *ids[start : start + 500])


def ask_slurm(*command: str) -> str:
    """Run a command of Slurm; returns what it prints, which is nothing if this machine has no Slurm.

    Raises:
        InputError: it fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)  # nosec B603  # fixed words
        return done.stdout
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(getattr(error, "stderr", None) or error).split())
        raise InputError(f"{command[0]} does not answer: {reason}") from None
