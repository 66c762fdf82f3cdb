"""Standard output and error: without a reader, without room on the disk, or redirected to a file."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from pgt.core.errors import InputError, RankZeroError, TrainingError, as_input_error

READER_LEFT = 128 + signal.SIGPIPE
"""Exit code of a command whose reader has left (`| head`), as shells report it for programs that SIGPIPE ends."""


def silence(*descriptors: int) -> None:
    """Discard what is written to these file descriptors from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def written_out() -> int:
    """Flush standard output and error; returns 0, or the exit code for output that could not be written.

    Otherwise Python flushes them when it exits, and prints an error message of its own if that fails.
    """
    code = 0
    for descriptor, stream in ((2, sys.stderr), (1, sys.stdout)):
        try:
            if stream is not None:  # it is None after `>&-`
                stream.flush()
        except BrokenPipeError:
            code = READER_LEFT
            silence(descriptor)
        except OSError as error:  # for example, a full disk
            code = InputError.exit_code
            silence(descriptor)
            if descriptor == 1:
                print(f"pgt: standard output: {as_input_error(error)}", file=sys.stderr, flush=True)
    return code


def show_all_characters() -> None:
    """Make standard output and error print a character that their encoding lacks as its code: `\\u03b1`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def endure() -> None:
    """Keep this process going if standard output or error can no longer be written: training has its log files.

    The reader may leave, a disk may be full, a terminal may be closed. What is printed after that is lost, which is
    said once, on standard error. Streams that replace Python's own, such as those of pytest, are left alone.
    """
    for name, own in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        stream = getattr(sys, name)
        if stream is own and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            raw = _Enduring(stream.fileno(), "wb", closefd=False)
            lasting = io.TextIOWrapper(
                cast(io.BufferedWriter, raw) if stream.write_through else io.BufferedWriter(raw),  # as Python's own are
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)


class _Enduring(io.FileIO):
    """A file descriptor that takes everything; from its first error on, what is written to it is lost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            silence(self.fileno())
            if self.fileno() != 2:
                why = "nobody reads" if isinstance(error, BrokenPipeError) else f"{error.strerror}: nothing goes to"
                said = f"pgt: {why} standard output any more; runs go on and write to log.txt"
                print(said, file=sys.stderr, flush=True)
            return len(data)


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
