"""Requests to stop: Ctrl-C, and the signals by which clusters announce the end of a process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Thread
from types import FrameType, TracebackType
from typing import Any

from pgt.core.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM comes from schedulers that preempt, from `kill`, and from torchrun. Slurm sends SIGUSR1 if a job asks for a
warning (`#SBATCH --signal=USR1@120`)."""

LOOKS = 2
"""Seconds after which a helper process looks again whether its owner is still there."""

NOTICE = b"\npgt: stops after this step and saves; Ctrl-C again ends at once\n"


class Stop:
    """A context in which a stop signal or a first Ctrl-C does not end the process: it is remembered in `wanted`.

    Schedulers signal all processes of a job at once, some of them twice, but only a training process has something to
    save: `Breaks.pause` in pgt/training/epochs.py reads `wanted` and raises `Stopped`. Processes started within this
    context inherit the blocked signals and never see them. Ctrl-C (SIGINT) reaches every process of a terminal; it is
    not blocked, since the second one has to end a process that hangs: it raises KeyboardInterrupt.
    """

    unanswered = 0
    """Number of a stop signal that came after a run's last step, too late for it; the sweep starts no further run."""

    def __init__(self) -> None:
        self._number, self._owner = 0, os.getpid()

    @property
    def wanted(self) -> int:
        """Number of the signal that asked to stop; 0 if none did."""
        if not self._number:
            self._number = max(_pending(), default=0)
        return self._number

    def __enter__(self) -> Stop:
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        resource_tracker.ensure_running()  # Python 3.11 unblocks SIGTERM when it starts the tracker, so start it first
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        # Threads that are older than this context do not block the signals and may receive them: hence the handlers.
        self._before: dict[int, Any] = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if ignored, as in a script's background
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note_ctrl_c)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, Stopped)
        if self.wanted and not stopped:
            Stop.unanswered = self.wanted
        while pending := _pending():
            signal.sigwait(pending)
        for number, handler in self._before.items():  # a second request must not disturb a process that is ending
            signal.signal(number, signal.SIG_IGN if stopped and number != signal.SIGINT else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._owner:
            self._number = number

    def _note_ctrl_c(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a process that was forked since, such as a data worker: this one ends it
            return
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        self._number = number
        if os.isatty(2):  # somebody is waiting; `print` may not be called while another `print` is interrupted
            os.write(2, NOTICE)


def _pending() -> set[signal.Signals]:
    return {number for number in STOP_SIGNALS if number in signal.sigpending()}


def leave_only_with(owner: int) -> None:
    """End this helper process with `owner`, or at its SIGTERM; ignore a SIGTERM of anybody else, such as a scheduler.

    An owner that was killed tells nobody, so the helper looks for it every `LOOKS` seconds (not on macOS). It never
    sees Ctrl-C, which a terminal sends to all processes: the owner finishes its step first.

    Args:
        owner: the id of the process that it helps.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if not hasattr(signal, "sigwaitinfo"):  # macOS, which has no schedulers
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def listen() -> None:
        while _runs(owner):
            came = signal.sigtimedwait({signal.SIGTERM}, LOOKS)
            if came is not None and came.si_pid == owner:
                break
        os._exit(0)

    Thread(target=listen, daemon=True).start()


def _runs(process: int) -> bool:
    """Whether a process has not ended. One whose end its parent has not asked for (a zombie) has ended."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b") ")[2][:1] != b"Z"
    except ProcessLookupError:
        return False
    except OSError:  # another user's process, or no /proc
        return True


@contextmanager
def uninterrupted(*more: signal.Signals) -> Iterator[None]:
    """A context that holds back Ctrl-C and the signals `more` until it ends; what was blocked before stays blocked.

    Processes that are started in it inherit the block and never see these signals, so this process must end them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *more})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
