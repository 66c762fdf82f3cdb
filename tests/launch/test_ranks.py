"""Ranks that `pgt` starts on this machine: results, deaths, stops, and that no process is left behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from pgt.cli.main import main
from pgt.core.errors import InputError, TrainingError
from pgt.core.machine import first_host, rank_environment
from pgt.launch.ranks import start_ranks
from pgt.runs.folder import find
from tests.conftest import ROOT, SECONDS, TINY, last_wins, train, until
from tests.launch import failing

MARK = "PGT_TEST_MARK"


@pytest.fixture
def marked(tmp_path, monkeypatch):
    """The living processes that this test has started, and theirs: an environment variable marks them."""
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
    return start_ranks(failing.work, job, 2)


def eventually_none(alive, seconds=60):
    deadline = time.monotonic() + seconds
    while alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive()


def test_the_result_of_rank_0_comes_back_and_each_has_torchruns_variables(marked):
    assert start(what="return") == {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    assert eventually_none(marked)


FAULT = (TrainingError, r"rank {rank} failed:\nTraceback[\s\S]*KeyError: 'the real cause'")
KILLED = (TrainingError, r"rank {rank} was killed by SIGKILL \(out of memory\?\); the same command goes on")
DEATHS = {
    "fault": FAULT,
    "kill": KILLED,
    "input": (InputError, "no such data"),
    "training": (TrainingError, "the loss is not finite"),
    "exit": (TrainingError, "rank {rank} ended with exit code 7"),
}
CASES = [(what, rank, wait) for what in DEATHS for rank in (0, 1) for wait in (0.0, 300)]
QUICK = [("fault", 0, 300), ("kill", 1, 0.0)]


@pytest.mark.parametrize(
    ("what", "rank", "wait"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_failing_rank_takes_the_others_down_and_is_named(marked, what, rank, wait):
    """Both if the others notice it by themselves, even before the failed one has ended, and if they never do."""
    started = time.monotonic()
    kind, text = DEATHS[what]
    with pytest.raises(kind, match="^" + text.format(rank=rank)):
        start(what=what, rank=rank, wait=wait, children=True)
    assert time.monotonic() - started < 100
    assert eventually_none(marked)


@pytest.mark.slow
def test_a_killed_rank_is_noticed_while_a_child_of_it_lives_on(marked):
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"^rank 1 was killed by SIGKILL"):
        start(what="kill", rank=1, forked=True)
    assert time.monotonic() - started < 100
    assert eventually_none(marked)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(marked):
    with pytest.raises(TrainingError, match=r"^rank 1 hangs: the others waited trainer.timeout_minutes for it"):
        start(what="deaf", rank=1, wait=1)
    assert eventually_none(marked)


HANGING = """
from pgt.launch.ranks import start_ranks
from tests.launch.failing import work
if __name__ == "__main__":
    start_ranks(work, {"what": "deaf", "rank": 1, "children": True}, 2)
"""


def test_when_the_parent_is_killed_the_ranks_go(marked):
    parent = subprocess.Popen([sys.executable, "-c", HANGING])
    until(lambda: Path("pid0").exists() and Path("pid1").exists(), parent)
    parent.kill()
    parent.wait()
    assert eventually_none(marked)


RUN = last_wins(
    *TINY, "model=resnet20", "recipe.epochs=200", "recipe.local_batch=4", "data.num_samples=64", "trainer.devices=2"
)


def long_run(*extra):
    """`pgt train` on two processes, in a process group of its own as a terminal gives it, some epochs on its way."""
    command = [sys.executable, "-m", "pgt", "train", *RUN, *extra]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until(lambda: [one for one, summary in find(Path("runs")) if summary.epochs], parent)
    return parent


@pytest.mark.slow
def test_ctrl_c_stops_all_ranks_in_order(marked):
    parent = long_run()
    os.killpg(parent.pid, signal.SIGINT)
    _, err = parent.communicate(timeout=SECONDS)
    assert parent.returncode == 130
    assert re.fullmatch(r"pgt: stopped by Ctrl-C after step \d of epoch \d+; the same command goes on there\n", err)
    assert eventually_none(marked)


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_the_same_command_goes_on(marked):
    parent = long_run()
    [worker] = [pid for pid in marked() if _is_rank(pid, 1)]
    os.kill(worker, signal.SIGKILL)
    _, err = parent.communicate(timeout=SECONDS)
    assert parent.returncode == 1
    assert err.startswith("pgt: rank 1 was killed by SIGKILL")
    assert len(err.splitlines()) == 1
    assert eventually_none(marked)
    [(_, summary)] = find(Path("runs"))
    assert summary.status == "unfinished"
    assert summary.epochs > 0
    assert summary.world_size == 2


@pytest.mark.slow
def test_a_rank_that_hangs_while_it_trains_is_named(marked):
    parent = long_run("trainer.timeout_minutes=0.3")
    [worker] = [pid for pid in marked() if _is_rank(pid, 1)]
    os.kill(worker, signal.SIGSTOP)
    _, err = parent.communicate(timeout=SECONDS)
    assert parent.returncode == 1
    assert err.startswith("pgt: rank 1 hangs: the others waited trainer.timeout_minutes for it")
    assert eventually_none(marked)


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
        [*launcher, "-m", "pgt", "train", *last_wins(*arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_torchrun_agents_as_two_nodes_finish_one_run(marked):
    port = free_port()
    base = (*TINY, "model=resnet20", "recipe.local_batch=4", "trainer.precision=fp64")
    agents = [torchrun(*base, nodes=2, node=node, port=port) for node in (0, 1)]
    outputs = [agent.communicate(timeout=SECONDS) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert "1 epoch of 2 steps on 2 devices" in outputs[0][0]
    assert outputs[1][0] == ""
    [(_, summary)] = find(Path("runs"))
    assert (summary.status, summary.world_size) == ("finished", 2)
    assert eventually_none(marked)
    alone = train(*base, "paths.runs=alone")
    assert alone.test_loss == pytest.approx(summary.test_loss, rel=1e-9)


@pytest.mark.slow
def test_bad_input_under_torchrun_is_said_once(marked):
    agent = torchrun(*TINY, "model=resnet20", "recipe.local_batch=8", processes=2, port=free_port())
    out, err = agent.communicate(timeout=SECONDS)
    assert agent.returncode != 0
    said = [line for line in err.splitlines() if line.startswith("pgt: ")]
    assert len(said) == 1
    assert said[0].startswith("pgt: 2 devices cannot share recipe.global_batch=8 in groups of recipe.local_batch=8")
    assert "Traceback" not in out
    assert not Path("runs").exists()
    assert eventually_none(marked)


@pytest.fixture
def only_rank(monkeypatch):
    """This process is the only one that torchrun has started."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    yield
    dist.destroy_process_group()  # the end of the process would have done it


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "seed=0,1"), "-m goes through runs one after the other, and torchrun or srun starts one run"),
        (("trainer.devices=3", "recipe.local_batch=null", "recipe.global_batch=12"),
         "trainer.devices=3, but torchrun or srun has started 1 on this machine: leave it out"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_torchrun_is_refused(only_rank, capsys, arguments, said):
    assert main(["train", *last_wins(*TINY, "model=resnet20_nobn", *arguments)]) == 2
    assert capsys.readouterr().err.startswith(f"pgt: {said}")
    assert not Path("runs").exists()


def test_sruns_variables_are_translated_to_torchruns():
    assert rank_environment({"HOME": "/"}) is None
    slurm = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77",
             "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[007-008]",
             "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}  # fmt: skip
    expected = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
                "MASTER_ADDR": "gpu007", "MASTER_PORT": "21232"}  # fmt: skip
    assert rank_environment(slurm) == expected
    assert rank_environment({**slurm, "SLURM_STEP_NUM_TASKS": "1"}) is None
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    with pytest.raises(InputError, match="'LOCAL_WORLD_SIZE' is not set: use torchrun or srun"):
        rank_environment({**slurm, **torchrun})
    assert rank_environment({**slurm, **torchrun, "LOCAL_WORLD_SIZE": "2"}) == {**torchrun, "LOCAL_WORLD_SIZE": "2"}


def test_a_single_process_that_is_told_so_is_none_of_several():
    """The only pod of a Kubernetes training operator has no LOCAL_RANK."""
    pod = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert rank_environment(pod) is None
    with pytest.raises(InputError, match="'LOCAL_RANK' is not set"):
        rank_environment({**pod, "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "'LOCAL_RANK' is not set"),
        ({"WORLD_SIZE": "2"}, "'RANK' is not set"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK=5 does not go with WORLD_SIZE=2"),
        ({"RANK": "1"}, "RANK=1 does not go with WORLD_SIZE=1"),
        ({"RANK": "x", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "RANK=x is not a number"),
    ],
)
def test_a_place_among_others_that_is_told_in_part_is_refused(variables, said):
    """Each of several such processes would otherwise train the whole run alone."""
    with pytest.raises(InputError, match=said):
        rank_environment(variables)


def test_leftovers_of_one_process_are_no_launcher():
    assert rank_environment({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) is None
    assert rank_environment({"LOCAL_RANK": "-1", "MASTER_ADDR": "x"}) is None
    assert rank_environment({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "tcp://10.0.0.1:80"}) is None


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
def test_a_rank_that_is_no_number_is_refused(name):
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "x",
                "MASTER_PORT": "1"}  # fmt: skip
    with pytest.raises(InputError, match=f"{name}=x is not a number"):
        rank_environment({**torchrun, name: "x"})
    with pytest.raises(InputError, match="SLURM_STEP_NUM_TASKS=x is not a number"):
        rank_environment({"SLURM_STEP_NUM_TASKS": "x", "SLURM_JOB_ID": "77"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("login1", "login1"),
        ("gpu[007-009,012],login1", "gpu007"),
        ("a-b[1,3]", "a-b1"),
        ("x1,x2", "x1"),
        ("r[0-1]n[2-3],login1", "r0n2"),
        ("c[1-4]-ib", "c1-ib"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(InputError, match=r"trainer.devices=4, but 2 GPUs are visible"):
        train(*TINY, "model=resnet20", "recipe.local_batch=2", "trainer.devices=4")
