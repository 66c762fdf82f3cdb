"""Being asked to stop in order: the signals by which clusters announce the end of a process. No torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from threading import Thread
from types import FrameType, TracebackType

from pgt.core.errors import Stopped

ASKING = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM comes from schedulers that preempt, from `kill`, and from torchrun. Slurm sends SIGUSR1 where a job asks for
a warning (`#SBATCH --signal=USR1@120`)."""


class Stop:
    """Within it the process, rather than end at once, remembers that it has been asked to stop.

    Schedulers ask all processes of a job at once, some of them twice, and nobody but a training process has anything
    to put away: whatever is started within it has the signals blocked, and takes no notice.
    """

    unanswered = 0
    """Number of the signal of a request that came when there was nothing left to stop."""

    def __init__(self) -> None:
        self._number = 0

    @property
    def wanted(self) -> int:
        """Number of the signal that has asked; 0: none has."""
        if not self._number:
            self._number = max(_pending(), default=0)
        return self._number

    def __enter__(self) -> Stop:
        self._owner = os.getpid()
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        resource_tracker.ensure_running()  # Python 3.11 unblocks SIGTERM wherever it starts that one later
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        self._before = {number: signal.signal(number, self._note) for number in ASKING}  # a thread from before has
        return self  # them not blocked, and may be the one that gets them

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, Stopped)
        if self.wanted and not stopped:
            Stop.unanswered = self.wanted
        while pending := _pending():
            signal.sigwait(pending)
        for number, handler in self._before.items():  # who asks again, on the way out, is not to end it in disorder
            signal.signal(number, signal.SIG_IGN if stopped else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._owner:
            self._number = number


def _pending() -> set[signal.Signals]:
    return signal.sigpending() & {*ASKING}


def leave_with_parent_only() -> None:
    """In a process that serves another one: SIGTERM ends it where that one sends it, and not where a scheduler does."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS, which no scheduler runs
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def listen() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    Thread(target=listen, daemon=True).start()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within it Ctrl-C waits, and processes that are started are deaf to it: it is this one's to end them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
