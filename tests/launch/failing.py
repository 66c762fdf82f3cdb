"""The ranks of test_ranks.py, most of which fail. They import no torch, so that they start quickly."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pgt.core.errors import InputError, LostRankError, TrainingError


def work(job):
    """Rank `job["rank"]` does `job["what"]`; the others wait for it, and lose it after `job["wait"]` seconds."""
    rank = int(os.environ["RANK"])
    Path(f"pid{rank}").write_text(str(os.getpid()))
    if job.get("forked") and os.fork() == 0:
        time.sleep(300)
        os._exit(0)
    if job.get("children"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    if job["what"] == "return":
        return {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    if rank != job["rank"]:
        time.sleep(job.get("wait", 300))
        raise LostRankError("timed out" if job["what"] == "deaf" else "connection closed by peer")
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
