"""Being asked to stop in order: the signals by which clusters announce the end of a process. No torch."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

ASKING = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM comes from schedulers that preempt, from `kill`, and from torchrun. Slurm sends SIGUSR1 where a job asks for
a warning (`#SBATCH --signal=USR1@120`)."""


class Stop:
    """Within it the process, rather than end at once, remembers that it has been asked to stop.

    A second SIGTERM ends it. Schedulers ask all processes of a job at once, and nobody but a training process has
    anything to put away: those that are forked within it take no notice, and SIGUSR1 is blocked for those that are
    started in other ways, too.
    """

    def __init__(self) -> None:
        self._number = 0

    @property
    def wanted(self) -> int:
        """Number of the signal that has asked; 0: none has."""
        if not self._number and signal.SIGUSR1 in signal.sigpending():
            self._number = signal.SIGUSR1
        return self._number

    def __enter__(self) -> Stop:
        self._owner = os.getpid()
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        self._before = {number: signal.signal(number, self._note) for number in ASKING}  # a thread from before has
        return self  # it not blocked, and may be the one that gets it

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while signal.SIGUSR1 in signal.sigpending():
            signal.sigwait({signal.SIGUSR1})
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return
        self._number = number
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
