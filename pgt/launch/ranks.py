"""Ranks on this machine: `pgt` starts them with torchrun's environment variables, watches them, and ends them.

The parent holds a pipe to each rank. A rank sends its result or its error through it; whichever of the two finds the
other end closed knows that the other has died. Each rank leads a process group, which its data workers belong to.

This is not torchrun's own engine (torch.distributed.elastic): that one ends the other ranks of a failed one by SIGTERM,
which a training rank takes for a request to stop, and so waits 30 seconds before it kills them.
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
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn

from pgt.core.errors import LostRankError, RankZeroError, Stopped, TrainingError, expected
from pgt.core.signals import Stop, uninterrupted
from pgt.core.streams import endure, show_all_characters, silence, written_out

CAUSE_SECONDS = 3.0
"""How long to wait for the error that caused another one."""
POLL_SECONDS = 0.5
"""Time between two looks at which ranks are alive."""
GRACE_SECONDS = 5.0
"""Time that a process has to end by itself."""
END = signal.SIGHUP
"""Ends a rank at once. SIGTERM would ask it to stop in order."""
CONSEQUENCES = (LostRankError, RankZeroError)
"""Errors that another rank's error has caused."""

Worker = tuple[BaseProcess, Connection]


def start_ranks(function: Callable[[Any], Any], argument: Any, count: int) -> Any:
    """Call `function(argument)` in `count` new processes; returns what rank 0 returns.

    Args:
        function: a function of a module, since the processes import it.

    Raises:
        InputError, TrainingError: as the rank raised it that failed first; the others are ended.
        Stopped: this process was asked to stop; all ranks have done so.
    """
    from pgt.training.ranks import host_store

    ranks = list[Worker]()
    with Stop() as stop:
        _store, port = host_store()  # it lives as long as the variable
        try:
            for rank in range(count):
                environment = {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(count),
                    "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(count),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "TORCHELASTIC_USE_AGENT_STORE": "True",  # the parent hosts the store, not rank 0
                }
                ranks.append(start_worker(function, argument, environment, f"rank {rank}"))
            return _watch(ranks, stop)
        finally:
            end_workers(ranks)
            if sys.stdout.isatty():  # rank 0 may have died with a progress line on the screen and the cursor hidden
                print("\r\x1b[2K\x1b[?25h", end="", flush=True)


def start_worker(function: Callable[[Any], Any], argument: Any, environment: dict[str, str], name: str) -> Worker:
    """Start a process that calls `function(argument)` and sends the result, or its error, through the pipe.

    It leads a process group of its own, so that Ctrl-C does not reach it, and it ends if this process dies.

    Args:
        function: a function of a module, since the process imports it.
        environment: environment variables to set.
        name: of the process, in the error of a fault.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(function, argument, environment, theirs, name))
    with uninterrupted():
        process.start()
    theirs.close()
    return process, ours


def _watch(ranks: list[Worker], stop: Stop) -> Any:
    """Wait until all ranks are done, or until one fails; returns the result of rank 0."""
    asked, deadline = False, float("inf")
    results: dict[int, Any] = {}
    failures: dict[int, Exception] = {}
    waiting = {connection: rank for rank, (_, connection) in enumerate(ranks)}
    while waiting and time.monotonic() < deadline:
        if stop.wanted and not asked:
            asked = True
            send_signal(ranks[0][0], signal.SIGUSR1)  # at their next break, all ranks learn of it
        ready = {*wait([*waiting], POLL_SECONDS)}
        # A child of a dead rank may keep the pipe open, so look at the processes, too.
        ready |= {connection for connection, rank in waiting.items() if ranks[rank][0].exitcode is not None}
        for connection in [connection for connection in waiting if connection in ready]:
            rank = waiting.pop(connection)
            outcome = outcome_of(ranks[rank], f"rank {rank}")
            if isinstance(outcome, Exception):
                failures[rank] = outcome
                deadline = min(deadline, time.monotonic() + CAUSE_SECONDS)
            else:
                results[rank] = outcome
        if 0 in failures and not isinstance(failures[0], CONSEQUENCES):  # if another rank's came first, rank 0 may
            break  # meet the same error, and must be left to write it into the run's folder
    if failures:
        raise _cause(failures, sorted(waiting.values()))
    for process, _ in ranks:
        process.join(GRACE_SECONDS)
    stops = [outcome for outcome in results.values() if isinstance(outcome, Stopped)]
    if stops:
        raise Stopped(stop.wanted or stops[0].number, stops[0].place)
    return results[0]


def outcome_of(worker: Worker, name: str) -> Any:
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
        return TrainingError(f"{name} ended with exit code {code}; {GOES_ON}")
    if code == -signal.SIGABRT:  # this is how NCCL ends a process that has lost another rank
        return LostRankError("was killed by SIGABRT")
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return TrainingError(f"{name} was killed by {signal.Signals(-code).name}{hint}; {GOES_ON}")


GOES_ON = "the same command goes on from the last checkpoint"


def _cause(failures: dict[int, Exception], silent: list[int]) -> Exception:
    """The failure that explains the others.

    Args:
        silent: ranks that are still running.
    """
    rank, error = min(failures.items(), key=lambda item: (isinstance(item[1], CONSEQUENCES), item[0]))
    if not isinstance(error, CONSEQUENCES):
        return error
    if silent and re.search("time|SIGABRT", str(error), re.IGNORECASE):
        return TrainingError(
            f"rank {' and '.join(map(str, silent))} hangs: the others waited trainer.timeout_minutes for it; look at "
            f"its log.rank<k>.txt and the disk it reads from; {GOES_ON}\nrank {rank}: {error}"
        )
    return TrainingError(f"rank {rank} {error}; {GOES_ON}")


def end_workers(workers: list[Worker]) -> None:
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


def _run(
    function: Callable[[Any], Any], argument: Any, environment: dict[str, str], parent: Connection, name: str
) -> None:
    """The main function of a process."""
    os.setpgrp()  # Ctrl-C is the parent's, and the group finds the data workers
    signal.signal(END, _end_silently)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    os.environ |= environment
    show_all_characters()
    endure()  # `function` is not `run`, which does so for the other processes
    try:
        outcome = function(argument)
    except (Exception, Stopped) as error:
        outcome = expected(error) or TrainingError(f"{name} failed:\n{traceback.format_exc()}")
    with suppress(OSError):
        parent.send(outcome)
    if isinstance(outcome, Exception):
        leave(1)


def _end_silently(number: int, frame: FrameType | None) -> NoReturn:
    """Exit, and hide what the data workers, which end at the same moment, have to say: the parent has the cause."""
    silence(1, 2)
    sys.exit(128 + number)


def _end_with_parent(parent: Connection) -> None:
    """Kill this rank's process group when the parent dies. The parent never sends anything."""
    with suppress(EOFError, OSError):
        parent.recv()
    os.killpg(0, signal.SIGKILL)


def leave(code: int) -> NoReturn:
    """End a rank after an error, without Python's finalization.

    Finalization may wait for ranks that are gone. Sometimes it ends in SIGABRT, because gloo's threads still run when
    C++ objects are destroyed.
    """
    for child in active_children():
        child.terminate()
    written_out()
    os._exit(code)
