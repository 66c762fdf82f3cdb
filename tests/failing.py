"""What workers do in test_workers.py: most of it wrong. Light: these processes import no torch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pgt.core.errors import InputError, TrainingError


class GoneError(RuntimeError):
    """As a collective operation fails when a peer has died."""


def lost(error):
    return isinstance(error, GoneError)


def work(job, place):
    """Rank `job["rank"]` does `job["what"]`; the others wait for it."""
    Path(f"pid{place.rank}").write_text(str(os.getpid()))
    if job.get("forked") and os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    if job.get("children"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    if job["what"] == "return":
        print(f"rank {place.rank} says this")
        return place.rank, place.world_size
    if place.rank != job["rank"]:
        time.sleep(job.get("wait", 300))
        raise GoneError("Timed out waiting for a peer" if job["what"] == "deaf" else "connection closed by peer")
    time.sleep(0.3)
    if job["what"] == "fault":
        raise KeyError("the real cause")
    if job["what"] == "input":
        raise InputError("no such data")
    if job["what"] == "training":
        raise TrainingError("the loss is not finite")
    if job["what"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job["what"] == "exit":
        os._exit(7)
    if job["what"] == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(300)
