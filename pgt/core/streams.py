"""Standard output and error: without a reader, or redirected to a file."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pgt.core.errors import InputError, RankZeroError, TrainingError

READER_LEFT = 128 + signal.SIGPIPE
"""Exit code of a command whose reader has left (`| head`), as shells report it for programs that SIGPIPE ends."""


def silence(*descriptors: int) -> None:
    """Discard what is written to these file descriptors from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def written_out() -> bool:
    """Flush standard output and error; returns whether somebody reads them.

    Python itself flushes them at its very end, and prints a complaint if the reader has left.
    """
    read = True
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:  # it is None after `>&-`
                stream.flush()
        except BrokenPipeError:
            read = False
            silence(descriptor)
        except OSError:  # for example, a full disk: Python's complaint is right
            pass
    return read


@contextmanager
def redirected(path: Path) -> Iterator[None]:
    """Append standard output and error, and those of processes started within it, to a file.

    An exception that leaves it is written there with its traceback, and gets a note that says so; errors whose one
    line says all are not. A file that stays empty is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written_out()
    screen = [os.dup(descriptor) for descriptor in (1, 2)]
    with path.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    try:
        yield
    except (InputError, TrainingError, RankZeroError):
        raise
    except Exception as error:
        traceback.print_exc()
        error.add_note(f"{path.name} says where")
        raise
    finally:
        written_out()
        for descriptor, copy in zip((1, 2), screen, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        with suppress(FileNotFoundError):  # another command on the same folder may have removed it
            if path.stat().st_size == 0:
                path.unlink()
