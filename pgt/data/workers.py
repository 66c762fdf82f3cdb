"""The threads and processes that read and decode image files for one rank. Does not import torch."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from threading import current_thread, main_thread

from pgt.core.errors import InputError
from pgt.core.signals import STOP_SIGNALS, uninterrupted

MOST = 16
"""The number of decoders on a rank of many CPUs: this many decode for the fastest GPU, and each takes memory."""

DIED = ("Workers initialization failed", "exited unexpectedly")
"""Texts by which the errors of DALI and torch are recognised as the death of a reader process."""

NOTICED = 2
"""Seconds within which a process's death is noticed after its connection was lost."""


def decoders(wanted: int | None, cpus: int) -> int:
    """Return how many threads or processes decode on a rank.

    Args:
        wanted: `data.workers`; None: one a CPU, at most `MOST`.
        cpus: the CPUs that the rank may use, which are the most that work at once.
    """
    return min(MOST if wanted is None else wanted, cpus)


def fork_server() -> BaseContext:
    """Start the process that torchvision's workers are forked from, unless it runs; it ends with this process.

    A worker that was forked from this process might hang once NCCL has begun, and a spawned one would take seconds to
    import torch. The server imports it once, while this process goes on, and is otherwise as new.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchvision.io", "torchvision.transforms.v2"])
    resource_tracker.ensure_running()  # the server would start it, and Python 3.11 unblocks SIGTERM when it does
    with uninterrupted(*STOP_SIGNALS):  # schedulers and terminals signal all processes
        forkserver.ensure_running()
    return context


def lost() -> InputError:
    """Make the error for the death of a process that reads images."""
    return InputError(
        "a process that reads images was killed: either the machine ran out of memory (`dmesg` shows that), or "
        "/dev/shm is too small (start the container with --shm-size=8g). Lower data.workers (or --workers) and give "
        "the same command again: it goes on from the last checkpoint"
    )


@contextmanager
def _named() -> Iterator[None]:
    """A context in which the error of a dead reader process becomes one that names the cause.

    Raises:
        InputError: see `lost`.
    """
    try:
        yield
    except RuntimeError as error:
        if any(text in str(error) for text in DIED):
            raise lost() from None
        raise


class Helpers:
    """The processes that read images for one loader. If one dies, the loader must not wait for it."""

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []

    @contextmanager
    def started(self) -> Iterator[None]:
        """A context in which the loader starts its processes, if it needs any.

        Raises:
            InputError: one of them has died before all had begun.
        """
        before = multiprocessing.active_children()
        try:
            with _named():
                yield
        except (ConnectionError, EOFError):  # it died while DALI told it what to read
            raise lost() from None
        self._processes = [child for child in multiprocessing.active_children() if child not in before]

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """A context in which the loader waits for its processes.

        SIGCHLD interrupts it: DALI would otherwise wait forever for a process that was killed while it was idle.

        Raises:
            InputError: one of the processes has died.
        """
        if not self._processes:  # no processes, or all of them died while they started
            with _named():
                yield
            return
        interruptible = current_thread() is main_thread()  # Python allows signal handlers only there
        before = signal.signal(signal.SIGCHLD, lambda *_: self._check()) if interruptible else None
        try:
            self._check()
            with _named():
                yield
        except Exception:  # torch reports a lost connection, for example
            self._check(NOTICED)
            raise
        finally:
            if interruptible:
                signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)

    def _check(self, seconds: float = 0) -> None:
        """Raise an InputError if one of the processes has died, or dies within some seconds."""
        if wait([process.sentinel for process in self._processes], seconds):
            raise lost()
