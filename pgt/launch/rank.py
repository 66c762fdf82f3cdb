"""One of the processes that torchrun or srun has started: they train one run together."""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
from typing import TYPE_CHECKING

from pgt.config import sharing
from pgt.core.errors import InputError, Stopped, TrainingError, as_input_error
from pgt.launch import workers
from pgt.runs.folder import Summary
from pgt.training.run import prepare, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import Store

    from pgt.config.schema import Config
    from pgt.core.machine import Place

CONFIG, HEARD = "config", "heard"
"""Where the first rank leaves what it composed, or why it refuses to; how many others have read that."""
HEARD_SECONDS = 5.0
"""That the first rank, with which the store may end, waits for the others to read its refusal."""


def run_as_rank(place: Place, compose: Callable[[], Config]) -> int:
    """Train as the process at `place`; returns the exit code.

    The first rank raises what goes wrong. A later one says it on the screen and, where it writes one, in its log.

    Args:
        compose: makes the config; the first rank alone calls it, the others receive what it made.

    Raises:
        InputError, TrainingError: as `run`.
    """
    screen = os.dup(2)  # before the log takes its place
    try:
        _train(place, compose)
    except Stopped as stopped:
        if place.rank == 0:
            raise
        return stopped.exit_code
    except Exception as error:
        failure = _explained(error)
        if place.rank == 0:
            if failure is error:
                raise
            raise failure from None
        if isinstance(failure, InputError) and failure.said:
            return failure.exit_code
        logged = not os.path.sameopenfile(2, screen)
        if not isinstance(failure, (InputError, TrainingError)):
            traceback.print_exc()
            reason = "".join(traceback.format_exception_only(error)).splitlines()[0]
            more = f"; log.rank{place.rank}.txt says where" if logged else ""
            failure = TrainingError(f"failed ({reason}){more}")
        line = f"pgt: rank {place.rank}: {failure}"
        print(line, file=sys.stderr, flush=True)
        if logged:
            os.write(screen, f"{line}\n".encode())
        return failure.exit_code
    finally:
        os.close(screen)
    return 0


def _train(place: Place, compose: Callable[[], Config]) -> None:
    from pgt.training.ranks import joined, meet

    store, job = meet(place), None
    if place.rank == 0:
        try:
            config = compose()
            sharing.check(config.recipe, place.world_size)
            job = prepare(config, "")
        except (InputError, OSError) as error:
            refuse(store, place.world_size, as_input_error(error) if isinstance(error, OSError) else error)
            raise
        store.set(CONFIG, pickle.dumps(config))
    else:
        config = receive(store)
    with joined(place, store, config.trainer.timeout_minutes) as ranks:
        job = ranks.share(job)
        if isinstance(job, Summary):
            return
        if ranks.first:
            train(job, ranks)
            return
        log = workers.redirect(job.folder, ranks.rank)
        stopped = None
        try:
            train(job, ranks)
        except Stopped as error:
            stopped = error
        if log.stat().st_size == 0:
            log.unlink()
        if stopped is not None:
            raise stopped


def refuse(store: Store, world_size: int, error: InputError) -> None:
    """Tell the other ranks why there is nothing to train, and wait some seconds until they know."""
    store.set(CONFIG, pickle.dumps(error))
    deadline = time.monotonic() + HEARD_SECONDS
    while store.add(HEARD, 0) < world_size - 1 and time.monotonic() < deadline:
        time.sleep(0.02)


def receive(store: Store) -> Config:
    """The config that the first rank has made.

    Raises:
        InputError: there is none, for the reason that the first rank gives.
    """
    received = pickle.loads(store.get(CONFIG))
    store.add(HEARD, 1)
    if isinstance(received, InputError):
        received.said = True
        raise received
    config: Config = received
    return config


def _explained(error: Exception) -> Exception:
    """The error as the user is told it; itself where there is nothing better to say."""
    from pgt.training.ranks import lost

    if isinstance(error, OSError):
        return as_input_error(error)
    if lost(error):
        return TrainingError(f"lost the other ranks: {str(error).splitlines()[0]}")
    return error
