"""Workers that fail: what is said, how soon, and that nothing is left."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pgt.core.errors import InputError, TrainingError
from pgt.core.machine import Place, first_host, found
from pgt.launch import workers
from pgt.runs.folder import find
from tests import failing
from tests.conftest import ROOT, TINY, train

MARK = "PGT_TEST_MARK"


@pytest.fixture
def marked(tmp_path, monkeypatch):
    """Processes that this test has started, and theirs, are known by a variable of their environment."""
    monkeypatch.setenv(MARK, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def alive():
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                mine = f"{MARK}={tmp_path}".encode() in path.read_bytes()
                mine &= b"resource_tracker" not in path.with_name("cmdline").read_bytes()  # this process's own
                if mine and "\nState:\tZ" not in path.with_name("status").read_text():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return [pid for pid in found if pid != os.getpid()]

    return alive


def start(**job):
    return workers.run_all(failing.work, job, 2, Path("."), failing.lost)


def eventually_none(alive, seconds=10):
    deadline = time.monotonic() + seconds
    while alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive()


def test_the_first_ones_result_comes_back_and_the_others_speak_into_a_log(marked, capfd):
    assert start(what="return") == (0, 2)
    assert capfd.readouterr().out == "rank 0 says this\n"
    assert Path("log.rank1.txt").read_text() == "rank 1 says this\n"
    assert eventually_none(marked)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("wait", [0.0, 300])
@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("fault", TrainingError, r"rank {rank} failed:\nTraceback[\s\S]*KeyError: 'the real cause'"),
        ("input", InputError, "no such data"),
        ("training", TrainingError, "the loss is not finite"),
        ("kill", TrainingError, r"rank {rank} was killed by SIGKILL \(out of memory\?\); the same command goes on"),
        ("exit", TrainingError, "rank {rank} ended with exit code 7"),
    ],
)
def test_a_failing_worker_takes_the_others_down_and_is_named(marked, what, kind, text, rank, wait):
    """Whether the others notice by themselves, and even before it is known who failed, or never."""
    started = time.monotonic()
    with pytest.raises(kind, match="^" + text.format(rank=rank)):
        start(what=what, rank=rank, wait=wait, children=True)
    assert time.monotonic() - started < 20
    assert eventually_none(marked)


def test_a_killed_worker_is_noticed_while_a_child_of_it_lives_on(marked):
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"^rank 1 was killed by SIGKILL"):
        start(what="kill", rank=1, forked=True)
    assert time.monotonic() - started < 20
    assert eventually_none(marked)


def test_a_rank_that_hangs_is_named(marked):
    with pytest.raises(TrainingError, match=r"^rank 1 hangs: the others waited trainer.timeout_minutes for it"):
        start(what="deaf", rank=1, wait=1)
    assert eventually_none(marked)


def test_when_the_parent_is_killed_the_workers_go(marked):
    code = "from tests.test_workers import start\nif __name__ == '__main__': start(what='deaf', rank=1, children=True)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not (Path("pid0").exists() and Path("pid1").exists()):
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert eventually_none(marked)


RUN = (*TINY, "model=resnet20", "recipe.epochs=200", "recipe.local_batch=4", "data.num_samples=64", "trainer.devices=2")


def long_run(*extra):
    """`pgt train` on two processes, in a process group of its own as a terminal gives it, some epochs on its way."""
    command = [sys.executable, "-m", "pgt.cli", "train", *RUN, *extra]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(Path(".").glob("runs/**/last.pt")):
        assert time.monotonic() < deadline, parent.communicate()
        assert parent.poll() is None, parent.communicate()
        time.sleep(0.1)
    return parent


def test_ctrl_c_ends_all_ranks(marked):
    parent = long_run()
    os.killpg(parent.pid, signal.SIGINT)
    _, err = parent.communicate(timeout=30)
    assert parent.returncode == 130
    assert err == "pgt: interrupted; the same command goes on from its last checkpoint\n"
    assert eventually_none(marked)


def test_a_killed_rank_ends_the_run_and_the_same_command_goes_on(marked):
    parent = long_run()
    [worker] = [pid for pid in marked() if _is_rank(pid, 1)]
    os.kill(worker, signal.SIGKILL)
    _, err = parent.communicate(timeout=30)
    assert parent.returncode == 1
    assert err.startswith("pgt: rank 1 was killed by SIGKILL")
    assert len(err.splitlines()) == 1
    assert eventually_none(marked)
    [(_, summary)] = find(Path("runs"))
    assert summary.status == "unfinished"
    assert summary.epochs > 0
    assert summary.world_size == 2


def _is_rank(pid, rank):
    """Whether the process writes the log of that rank."""
    try:
        return os.readlink(f"/proc/{pid}/fd/1").endswith(f"log.rank{rank}.txt")
    except OSError:
        return False


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def torchrun(*arguments, nodes=1, node=0, processes=1, port=0):
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--node-rank={node}",
                f"--nproc-per-node={processes}", "--master-addr=127.0.0.1", f"--master-port={port}"]  # fmt: skip
    return subprocess.Popen(
        [*launcher, "-m", "pgt.cli", "train", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_torchrun_agents_as_two_nodes_finish_one_run(marked):
    port = free_port()
    base = (*TINY, "model=resnet20", "recipe.local_batch=4", "trainer.precision=fp64")
    agents = [torchrun(*base, nodes=2, node=node, port=port) for node in (0, 1)]
    outputs = [agent.communicate(timeout=120) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert "1 epochs of 2 steps on 2 devices" in outputs[0][0]
    assert outputs[1][0] == ""
    [(_, summary)] = find(Path("runs"))
    assert (summary.status, summary.world_size) == ("finished", 2)
    assert eventually_none(marked)
    alone = train(*base, "paths.runs=alone")
    assert alone.test_loss == pytest.approx(summary.test_loss, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-m", "seed=0,1"), "-m goes through runs one after the other, and torchrun or srun starts one run"),
        (("model=resnet20_nobn", "trainer.devices=3", "recipe.local_batch=null", "recipe.global_batch=12"),
         "trainer.devices=3, but 2 processes were started on this machine: leave it out"),
        (("recipe.local_batch=8",), "2 devices cannot share recipe.global_batch=8 in groups of recipe.local_batch=8"),
    ],
)  # fmt: skip
def test_bad_input_under_torchrun_is_said_once(marked, arguments, text):
    agent = torchrun(*TINY, "model=resnet20", *arguments, processes=2, port=free_port())
    out, err = agent.communicate(timeout=120)
    assert agent.returncode != 0
    said = [line for line in err.splitlines() if line.startswith("pgt: ")]
    assert len(said) == 1
    assert said[0].startswith(f"pgt: {text}")
    assert "Traceback" not in out
    assert not Path("runs").exists()
    assert eventually_none(marked)


def test_places_are_taken_as_found(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert found() is None
    slurm = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77",
             "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[007-008]",
             "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}  # fmt: skip
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert found() == Place(5, 8, 1, 4, "tcp://gpu007:21232")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert found() is None
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="'LOCAL_WORLD_SIZE' is not set: use torchrun or srun"):
        found()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert found() == Place(3, 4, 1, 2, "env://")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("login1", "login1"), ("gpu[007-009,012],login1", "gpu007"), ("a-b[1,3]", "a-b1"), ("x1,x2", "x1")],
)
def test_the_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(InputError, match=r"trainer.devices=4, but 2 GPUs are visible"):
        train(*TINY, "model=resnet20", "recipe.local_batch=2", "trainer.devices=4")
