"""The processes that read images: how many there are, and what happens if one dies."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pgt.core.types import IGNORE_INDEX
from pgt.data.reader import Reader, Stream
from pgt.data.sampler import Sampler
from pgt.data.tree import scan
from pgt.data.workers import decoders
from pgt.tools.jpegs import generate
from tests.conftest import ROOT
from tests.data.helpers import BACKENDS, FOLDER, loaders, script


@pytest.mark.parametrize(
    ("wanted", "cpus", "expected"), [(None, 4, 4), (None, 64, 16), (8, 4, 4), (24, 64, 24), (0, 4, 0)]
)
def test_there_are_as_many_decoders_as_cpus_or_as_wanted(wanted, cpus, expected):
    assert decoders(wanted, cpus) == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of torch, on a machine with one CPU
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loader_says_how_many_decode(tmp_path, backend):
    for split in ("train", "val"):
        generate(tmp_path / split, 8)
    made = loaders({**FOLDER, "backend": backend, "workers": None}, cpus=2)
    assert [loader.workers for loader in made] == [2, 2]


def test_a_group_is_one_answer_and_another_evaluation_follows(tmp_path):
    generate(tmp_path, 5)
    files = scan(tmp_path)
    stream = Stream(Reader(files, 24, None), Sampler(5, 4, 4, training=False), 1)
    data, start, shape, size, *rest, label, unreadable = stream(0)
    assert [bytes(content) for content in data[:1]] == [files.path(4).read_bytes()]
    assert len(data) == len(start) == len(shape) == len(size) == 4
    assert all(values.shape == (4,) for values in rest)
    assert label.tolist() == [1] + [IGNORE_INDEX] * 3
    assert unreadable.tolist() == [-1] * 4
    assert [bytes(content) for content in stream(1)[0]] == [files.path(index).read_bytes() for index in range(4)]


KILLED_AT_START = """
import os, signal, sys, threading
from multiprocessing.process import BaseProcess
from pgt.core.errors import InputError
from tests.data.helpers import FOLDER, loaders
start, hold = BaseProcess.start, float(sys.argv[2])
def start_and_die(process):
    BaseProcess.start = start  # only the first dies
    start(process)
    os.kill(process.pid, signal.SIGSTOP if hold else signal.SIGKILL)
    if hold:
        threading.Timer(hold, os.kill, (process.pid, signal.SIGKILL)).start()
if __name__ == "__main__":
    signal.alarm(200)
    train, _ = loaders({**FOLDER, "backend": sys.argv[1], "workers": 4}, cpus=4)
    BaseProcess.start = start_and_die
    try:
        print(len(list(train.epoch(0))))
    except InputError as error:
        print(error)
"""

KILLED = """
import multiprocessing, os, signal, sys, time
from pgt.core.errors import InputError
from tests.data.helpers import FOLDER, loaders
if __name__ == "__main__":
    signal.alarm(200)  # ends a process that waits forever
    options = {**FOLDER, "backend": sys.argv[1], "workers": 4}
    for split in range(2):
        made = loaders(options, cpus=4, global_batch=1, local_batch=1, evaluation_batch=1)
        batches = made[split].epoch(0)
        next(batches)
        time.sleep(0.5)  # all of them are idle
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        try:
            print(len(list(batches)))
        except InputError as error:
            print(error)
        for loader in made:
            loader.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_that_was_killed_ends_the_loader_and_is_named_as_the_cause(tmp_path, backend):
    for name in ("train", "val"):
        generate(tmp_path / name, 24)
    for said in script(KILLED, backend, quiet=False):
        assert "was killed" in said
        assert "/dev/shm" in said


@pytest.mark.slow
@pytest.mark.parametrize("hold", [0, 0.5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_that_is_killed_while_it_starts_is_named_as_the_cause(tmp_path, backend, hold):
    """At once, or after half a second of standing still, while the loader waits for it."""
    for name in ("train", "val"):
        generate(tmp_path / name, 24)
    [said] = script(KILLED_AT_START, backend, str(hold), quiet=False)
    assert "was killed" in said


def runs(pid):
    """Whether a process has not ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it is opened, and before it is read
        return False


def left(pids, seconds):
    """The processes that still run after some seconds. They are then ended."""
    deadline = time.monotonic() + seconds
    while pids and time.monotonic() < deadline:
        time.sleep(0.2)
        pids = {pid for pid in pids if runs(pid)}
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


KILLED_OWNER = """
import multiprocessing, os, signal, sys
from tests.data.helpers import FOLDER, loaders
if __name__ == "__main__":
    made = loaders({**FOLDER, "backend": sys.argv[1], "workers": 8}, cpus=8, global_batch=4, local_batch=2)
    for _ in made[0].epoch(0):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_processes_of_a_killed_one_end(tmp_path, backend):
    for name in ("train", "val"):
        generate(tmp_path / name, 24)
    command = [sys.executable, "-c", KILLED_OWNER, backend]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as owner:
        pids = {int(pid) for pid in owner.stdout.readline().split()}  # they keep the stream open: it has no end
    assert pids
    assert left(pids, seconds=60) == set()
