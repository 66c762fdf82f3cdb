"""Standard output and error, where nobody reads them any more. No torch."""

from __future__ import annotations

import os
import signal
import sys

READER_LEFT = 128 + signal.SIGPIPE
"""Exit code of a command whose reader has seen enough (`| head`), as shells have it for programs that SIGPIPE ends."""


def silence(*numbers: int) -> None:
    """Let what is written to these file descriptors go nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in numbers:
        os.dup2(nowhere, number)
    os.close(nowhere)


def written_out() -> bool:
    """Write out what was printed, which Python else does at its very end, and complains; whether it has a reader."""
    read = True
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:  # `>&-`
                stream.flush()
        except BrokenPipeError:
            read = False
            silence(number)
        except OSError:  # a full disk, say: Python's complaint is right
            pass
    return read
