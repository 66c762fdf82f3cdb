"""Files that are written whole or not at all, and what is said if the disk is full."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pgt.core.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Replace the contents of `path` by the text and a final newline; makes its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((text + "\n").encode(errors="backslashreplace"))  # of file names that are no UTF-8


def write_json(path: Path, values: Any) -> None:
    """Replace `path` by readable JSON; makes its folder if needed, as `write_text` does."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False))


TEMPORARY = ".*.tmp"
"""A pattern for the names of files that are not whole yet, or that a killed process has left behind."""


@contextmanager
def atomic_write(path: Path, before: Path | None = None) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when it is whole and on the disk, or not at all.

    Args:
        before: a name under which the file that was at `path` is kept; by default it is overwritten.

    Raises:
        InputError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if before is not None and path.exists():
                path.replace(before)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


FULL = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "remove files of yours, or have your quota raised",
    errno.EFBIG: "raise the limit on the size of a file (`ulimit -f unlimited`), or take another file system",
}
"""Errors of a disk, a quota or a limit that leaves no room, each with the mend."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context for writing to the open file `path`: errors of the system, which have no name of a file, get it here.

    Raises:
        InputError: the disk or a quota is full, or the file is too large.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            free = f", with {shutil.disk_usage(path.parent).free / 1e6:,.1f} MB free" * (error.errno == errno.ENOSPC)
            raise InputError(
                f"{path}: {error.strerror}{free}: {FULL[error.errno]}, then give the same command again"
            ) from None
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
