"""Ranks on this machine: `pgt` starts them with torchrun's environment variables, watches them, and ends them.

This is not torchrun's own engine (torch.distributed.elastic): that one ends the other ranks of a failed one by SIGTERM,
which a training rank takes for a request to stop, and so waits 30 seconds before it kills them.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from pgt.core.errors import LostRankError, RankZeroError, Stopped, TrainingError
from pgt.core.signals import Stop
from pgt.launch.processes import (
    GOES_ON,
    GRACE_SECONDS,
    Worker,
    done,
    end_workers,
    outcome_of,
    send_signal,
    start_worker,
)

CAUSE_SECONDS = 3.0
"""How long to wait for the error that caused another one."""
CONSEQUENCES = (LostRankError, RankZeroError)
"""Errors that another rank's error has caused."""


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
            if (
                sys.stdout is not None and sys.stdout.isatty()
            ):  # rank 0 may have died with a progress line on the screen and the cursor hidden
                print("\r\x1b[2K\x1b[?25h", end="", flush=True)


def _watch(ranks: list[Worker], stop: Stop) -> Any:
    """Wait until all ranks are done, or until one fails; returns the result of rank 0."""
    asked, deadline = False, float("inf")
    results: dict[int, Any] = {}
    failures: dict[int, Exception] = {}
    waiting = dict(enumerate(ranks))
    while waiting and time.monotonic() < deadline:
        if stop.wanted and not asked:
            asked = True
            send_signal(ranks[0][0], signal.SIGUSR1)  # at their next break, all ranks learn of it
        for rank in done(waiting):
            outcome = outcome_of(waiting.pop(rank))
            if isinstance(outcome, Exception):
                failures[rank] = outcome
                deadline = min(deadline, time.monotonic() + CAUSE_SECONDS)
            else:
                results[rank] = outcome
        # Rank 0's own error ends the wait. After another rank's, rank 0 may still be writing the same error into the
        # run's folder.
        if 0 in failures and not isinstance(failures[0], CONSEQUENCES):
            break
    if failures:
        raise _cause(failures, sorted(waiting))
    for process, _ in ranks:
        process.join(GRACE_SECONDS)
    stops = [outcome for outcome in results.values() if isinstance(outcome, Stopped)]
    if stops:
        raise Stopped(stop.wanted or stops[0].number, stops[0].place)
    return results[0]


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
