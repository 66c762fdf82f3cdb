"""The folder of a sweep: a link to each of its runs, named by the number of the job."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

FOLDER = ".sweeps"
"""In the runs folder: the folders of sweeps."""


def new_sweep(root: Path) -> Path:
    """Make the folder of a new sweep in a runs folder, so that all machines that train see it."""
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
