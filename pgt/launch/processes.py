"""Processes on this machine: started with environment variables, and ended with everything they have started.

The parent holds a pipe to each, through which the process sends its result or its error. If one side dies, the other
finds the pipe closed. Each process leads a process group, which its data workers belong to.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import active_children, current_process, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn

from pgt.core.errors import LostRankError, Stopped, TrainingError, expected
from pgt.core.signals import uninterrupted
from pgt.core.streams import endure, silence, written_out

POLL_SECONDS = 0.5
"""Time between two looks at which processes are alive."""
GRACE_SECONDS = 5.0
"""Time that a process has to end by itself."""
END = signal.SIGHUP
"""Ends a process at once. SIGTERM would ask it to stop in order."""
GOES_ON = "the same command goes on from the last checkpoint"

Worker = tuple[BaseProcess, Connection]


def start_worker(function: Callable[[Any], Any], argument: Any, environment: dict[str, str], name: str) -> Worker:
    """Start a process that calls `function(argument)` and sends the result, or its error, through the pipe.

    It leads a process group of its own, so that Ctrl-C does not reach it, and it ends if this process dies.

    Args:
        function: a function of a module, since the process imports it.
        environment: environment variables to set.
        name: how errors call the process.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(function, argument, environment, theirs), name=name)
    with uninterrupted():
        process.start()
    theirs.close()
    return process, ours


def done(workers: Mapping[int, Worker]) -> list[int]:
    """The keys of the processes that have sent something or have ended; waits a little for the first one."""
    ready = wait([connection for _, connection in workers.values()], POLL_SECONDS)
    # A child of a dead process may keep its pipe open, so look at the processes, too.
    return [key for key, (process, pipe) in workers.items() if pipe in ready or process.exitcode is not None]


def outcome_of(worker: Worker) -> Any:
    """The result or error that a process has sent; if it died without a word, an error that says how."""
    process, connection = worker
    try:
        if connection.poll():
            return connection.recv()
    except (EOFError, OSError):
        pass
    process.join(GRACE_SECONDS)
    code = process.exitcode
    if code is None or code >= 0:
        return TrainingError(f"{process.name} ended with exit code {code}; {GOES_ON}")
    if code == -signal.SIGABRT:  # this is how NCCL ends a process that has lost another rank
        return LostRankError("was killed by SIGABRT")
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return TrainingError(f"{process.name} was killed by {signal.Signals(-code).name}{hint}; {GOES_ON}")


def end_workers(workers: Sequence[Worker]) -> None:
    """End the processes that still run, and everything that any of them has started."""
    for number in (END, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_SECONDS
        for process, _ in workers:
            if process.is_alive():
                send_signal(process, number)  # it may not lead a process group yet
                send_signal(process, number, os.killpg)
        for process, _ in workers:
            process.join(max(0.0, deadline - time.monotonic()))
    for process, connection in workers:
        send_signal(process, signal.SIGKILL, os.killpg)  # what a dead rank has left behind
        connection.close()


def send_signal(process: BaseProcess, number: int, send: Callable[[int, int], None] = os.kill) -> None:
    """Send a signal to a process, which may have ended."""
    assert process.pid is not None
    with suppress(ProcessLookupError, PermissionError):
        send(process.pid, number)


def _run(function: Callable[[Any], Any], argument: Any, environment: dict[str, str], parent: Connection) -> None:
    """The main function of a process."""
    os.setpgrp()  # Ctrl-C is the parent's, and the group finds the data workers
    signal.signal(END, _end_silently)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    os.environ |= environment
    endure()  # `function` is not `run`, which does so for the other processes
    try:
        outcome = function(argument)
    except (Exception, Stopped) as error:
        outcome = expected(error) or TrainingError(f"{current_process().name} failed:\n{traceback.format_exc()}")
    with suppress(OSError):
        parent.send(outcome)
    if isinstance(outcome, Exception):
        leave(1)


def _end_silently(number: int, frame: FrameType | None) -> NoReturn:
    """Exit, and hide what the data workers, which end at the same moment, have to say: the parent has the cause."""
    silence(1, 2)
    sys.exit(128 + number)


def _end_with_parent(parent: Connection) -> None:
    """Kill this process's group when the parent dies. The parent never sends anything."""
    with suppress(EOFError, OSError):
        parent.recv()
    os.killpg(0, signal.SIGKILL)


def leave(code: int) -> NoReturn:
    """End this process after an error, without Python's finalization.

    Finalization may wait for ranks that are gone. Sometimes it ends in SIGABRT, because gloo's threads still run when
    C++ objects are destroyed.
    """
    for child in active_children():
        child.terminate()
    written_out()
    os._exit(code)
