"""The folder of a sweep: a link to each of its runs, named by the number of the job."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pgt.core.errors import InputError

FOLDER = ".sweeps"
"""In the runs folder: the folders of sweeps."""


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


def link(sweep: Path, number: int, run: Path) -> None:
    """Note that job `number` of a sweep trains a run."""
    sweep.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):  # a requeued job
        (sweep / str(number)).symlink_to(os.path.relpath(run.absolute(), sweep.absolute()))


def runs_of(sweep: Path) -> dict[int, Path]:
    """The run folders of a sweep by the numbers of their jobs. Some may not be there yet."""
    links = [path for path in sweep.iterdir() if path.name.isdecimal() and path.is_symlink()]
    return {int(path.name): Path(os.path.normpath(sweep / path.readlink())) for path in links}


def queued() -> dict[Path, str]:
    """The runs that jobs of this user in Slurm's queue train or are to train, with the ids of the jobs.

    The comment of a job is a folder whose links, named by the numbers of the array's jobs, lead to the runs. Without
    Slurm there are none.

    Returns:
        An id by the run's folder, which is absolute and resolved.

    Raises:
        InputError: Slurm does not answer.
    """
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i|%T|%k"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except FileNotFoundError:
        return {}
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(getattr(error, "stderr", None) or error).split())
        raise InputError(f"squeue does not tell what is in the queue: {reason}") from None
    found: dict[Path, str] = {}
    arrays: dict[str, dict[int, Path]] = {}
    for text in shown.splitlines():
        job, state, comment = text.split("|", 2)
        if state == "COMPLETING" or not re.search(r"/array\d+$", comment):  # it may have been cancelled
            continue
        if comment not in arrays:
            arrays[comment] = runs_of(Path(comment)) if Path(comment).is_dir() else {}
        run = arrays[comment].get(int(job.partition("_")[2] or 0))
        if run is not None:
            found[run.resolve()] = job
    return found
