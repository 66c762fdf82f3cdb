"""Processes that train together on this machine: started, watched, and ended. No torch.

The parent holds a pipe to each worker. A worker says through it what came of it; whichever of the two finds the
other end closed knows that the other is gone. Each worker leads a process group, so that whatever it has started
goes with it.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NoReturn

from pgt.core.errors import InputError, Stopped, TrainingError, as_input_error
from pgt.core.machine import Place
from pgt.core.signals import Stop, uninterrupted
from pgt.core.streams import silence

CAUSE_SECONDS = 3.0
"""How long to listen, after a first failure, for the one that caused it."""
POLL_SECONDS = 0.5
"""Between two looks at which workers live."""
GRACE_SECONDS = 5.0
"""From the request to end until the end."""
END = signal.SIGHUP
"""Ends a worker at once; to SIGTERM it answers as `pgt.stopping` says."""


Target = Callable[[Any, Place], Any]
"""(job, place) -> result; a function of a module, since workers import it."""


@dataclass
class _Failure:
    """What went wrong in a worker.

    Attributes:
        kind: `input`, `training`, `fault` (any other exception), `killed`, or `lost` (it missed another worker).
    """

    rank: int
    kind: str
    text: str


def run_all(target: Target, job: Any, count: int, folder: Path, lost: Callable[[BaseException], bool]) -> Any:
    """Call `target` in `count` processes; returns what the first one returns.

    Args:
        folder: what ranks after the first print goes into `log.rank<k>.txt` there.
        lost: whether an exception only says that another worker is gone.

    Raises:
        InputError, TrainingError: as the worker that failed first raised it; the others are ended.
        Stopped: this process was asked to stop, asked them, and they have done so.
    """
    context = get_context("spawn")
    with TemporaryDirectory(prefix="pgt-") as meeting, Stop() as stop:
        workers: list[tuple[BaseProcess, Connection]] = []
        try:
            for rank in range(count):
                ours, theirs = context.Pipe()
                place = Place(rank, count, rank, count, f"file://{meeting}/ranks")
                process = context.Process(target=_work, args=(target, job, place, theirs, folder, lost))
                with uninterrupted():
                    process.start()
                theirs.close()
                workers.append((process, ours))
            return _watch(workers, stop)
        finally:
            _end(workers)
            if sys.stdout.isatty():  # the first rank may have been ended with a progress line there, and no cursor
                print("\r\x1b[2K\x1b[?25h", end="", flush=True)


def _watch(workers: list[tuple[BaseProcess, Connection]], stop: Stop) -> Any:
    """Wait for all workers, or for the first that fails; the first one's result."""
    asked = False
    results: dict[int, Any] = {}
    stopped: Stopped | None = None
    failures: list[_Failure] = []
    waiting = {connection: rank for rank, (_, connection) in enumerate(workers)}
    deadline: float | None = None
    while waiting and (deadline is None or time.monotonic() < deadline):
        if stop.wanted and not asked:
            asked = True
            with suppress(ProcessLookupError):
                os.kill(workers[0][0].pid, signal.SIGUSR1)  # it keeps until that looks; all agree between two steps
        ready = wait(list(waiting), POLL_SECONDS)
        ended = [connection for connection, rank in waiting.items() if workers[rank][0].exitcode is not None]
        for connection in {*ready, *ended}:  # where a forked child lives on, a dead worker's pipe stays open
            assert isinstance(connection, Connection)
            rank = waiting.pop(connection)
            try:
                if not connection.poll():
                    raise EOFError
                kind, content = connection.recv()
            except (EOFError, OSError):
                workers[rank][0].join(GRACE_SECONDS)
                code = workers[rank][0].exitcode
                kind, content = "lost" if code == -signal.SIGABRT else "killed", _how_it_ended(code)  # NCCL aborts so
            if kind == "done":
                results[rank] = content
            elif kind == "stopped":
                stopped = content
            else:
                failures.append(_Failure(rank, kind, content))
        if failures and deadline is None:
            deadline = time.monotonic() + CAUSE_SECONDS
        if any(failure.kind != "lost" for failure in failures):
            break
    if failures:
        raise _error(failures, sorted(waiting.values()))
    for process, _ in workers:
        process.join(GRACE_SECONDS)
    if stopped is not None:
        raise Stopped(stop.wanted or stopped.number, stopped.place)
    return results[0]


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"
    return f"ended with exit code {code}"


def _error(failures: list[_Failure], silent: list[int]) -> InputError | TrainingError:
    """The error that explains the others."""
    first = min(failures, key=lambda failure: failure.kind == "lost")
    if first.kind == "input":
        return InputError(first.text)
    if first.kind == "training":
        return TrainingError(first.text)
    if first.kind == "killed":
        return TrainingError(f"rank {first.rank} {first.text}; the same command goes on from the last checkpoint")
    if first.kind == "lost" and silent and re.search("time|SIGABRT", first.text, re.IGNORECASE):
        ranks = " and ".join(map(str, silent))
        return TrainingError(
            f"rank {ranks} hangs: the others waited trainer.timeout_minutes for it; look at its log.rank<k>.txt and "
            "the disk it reads from; the same command goes on from the last checkpoint\n"
            f"rank {first.rank}: {first.text.strip().splitlines()[-1]}"
        )
    return TrainingError(f"rank {first.rank} failed:\n{first.text}")


def _end(workers: list[tuple[BaseProcess, Connection]]) -> None:
    """Ask those that still run to end, then end them, and everything that they started."""
    for number, seconds in ((END, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        deadline = time.monotonic() + seconds
        for process, _ in workers:
            if process.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)  # it may not lead a group yet
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
        for process, _ in workers:
            process.join(max(0.0, deadline - time.monotonic()))
    for process, connection in workers:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what a dead worker has left behind
        connection.close()


def _work(
    target: Target, job: Any, place: Place, parent: Connection, folder: Path, lost: Callable[[BaseException], bool]
) -> None:
    """The life of a worker."""
    os.setpgrp()  # Ctrl-C is the parent's; and its children are found by this group
    signal.signal(END, _end_silently)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    if place.rank:
        log = redirect(folder, place.rank)
    try:
        message = ("done", target(job, place))
    except InputError as error:
        message = ("input", str(error))
    except TrainingError as error:
        message = ("training", str(error))
    except OSError as error:
        message = ("input", str(as_input_error(error)))
    except Stopped as error:
        message = ("stopped", error)
    except Exception as error:
        message = ("lost" if lost(error) else "fault", traceback.format_exc())
        if place.rank:
            print(message[1], file=sys.stderr, flush=True)
    if place.rank and log.stat().st_size == 0:
        log.unlink()
    with suppress(OSError):
        parent.send(message)
    if message[0] not in ("done", "stopped"):
        leave(1)


def _end_silently(number: int, frame: FrameType | None) -> NoReturn:
    """The parent has the reason; what its data workers, ended with it, make of their end is none of the user's."""
    silence(1, 2)
    sys.exit(128 + number)


def leave(code: int) -> NoReturn:
    """End a process that talks to other ranks, after an error.

    The tidy way out may wait for ranks that are gone, and ends in SIGABRT now and then: gloo's threads still run when
    C++ clears up behind them.
    """
    for child in active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _follow(parent: Connection) -> None:
    """Go when the parent does: it never sends anything, so that whatever ends the wait is its end."""
    with suppress(EOFError, OSError):
        parent.recv()
    os.killpg(0, signal.SIGKILL)


def redirect(folder: Path, rank: int) -> Path:
    """Standard output and error of this process, and of what it starts, go to `log.rank<k>.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"log.rank{rank}.txt"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    return path
