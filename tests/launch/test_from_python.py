"""`pgt.train`: results and exceptions, and nothing of the calling program is changed."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import pgt
from pgt import runs
from pgt.core.errors import InputError, Stopped, TrainingError
from pgt.runs.folder import read_failure
from pgt.tools.jpegs import generate
from pgt.training.epochs import Breaks
from tests.conftest import ROOT, TINY, last_wins

SMALL = (*TINY, "model=resnet20")


FLOAT32 = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


def state():
    """What a program would notice."""
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "folder": os.getcwd(),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "python": (list(sys.argv), list(sys.path), sys.modules["__main__"], sys.stdout, sys.stderr),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "torch": (torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark, torch.get_rng_state().tolist()),
        "tf32": [part.fp32_precision for part in FLOAT32],
    }


@pytest.fixture(autouse=True)
def _nothing_is_changed():
    as_it_was = [part.fp32_precision for part in FLOAT32]
    for part in FLOAT32:
        part.fp32_precision = "tf32"
    before = state()
    yield
    assert state() == before
    for part, precision in zip(FLOAT32, as_it_was, strict=True):
        part.fp32_precision = precision


def test_a_run_is_its_row_of_the_frame(capsys):
    row = pgt.train([*SMALL, "seed=1"])
    [expected] = runs.frame("runs").to_dict("records")
    assert {name: value for name, value in expected.items() if value == value and value is not None} == {
        name: value for name, value in row.items() if value is not None
    }
    assert (row["status"], row["seed"], row["recipe.epochs"]) == ("finished", 1, 1)
    assert 0 <= row["test_top1_best"] <= 100
    assert "finished earlier" not in capsys.readouterr().out
    assert pgt.train([*SMALL, "seed=1"]) == row
    assert "finished earlier" in capsys.readouterr().out


def test_a_sweep_is_a_list_in_the_order_of_its_jobs():
    rows = pgt.train(["-m", *SMALL, "method=pgt,baseline", "seed=1,0"])
    assert [(row["method"], row["seed"]) for row in rows] == [("pgt", 1), ("pgt", 0), ("baseline", 1), ("baseline", 0)]


def test_configs_of_ones_own_are_found():
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/mine.yaml").write_text("# @package _global_\ndefaults: [override /model: resnet20]\n")
    assert pgt.train([*TINY, "experiment=mine", "--config-dir", "own"])["experiment"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (["metod.alpha=1"], "method.alpha"),
        (["seed=0,1"], "add -m"),
        (["-m", "metod.alpha=1,0.5"], "method.alpha"),
        (["experiment=demo/bn", "--cfg", "job"], "pgt train"),
        (["--foo"], "pgt train --help"),
        ([], "experiment=demo/bn"),
        ("experiment=demo/bn seed=1", "list of words"),
        ([*TINY, "model=resnet20", "data.num_samples=4"], "global_batch"),
    ],
)
def test_bad_input_is_an_exception(arguments, mend):
    with pytest.raises(InputError, match=mend):
        pgt.train(arguments if isinstance(arguments, str) else last_wins(*arguments))
    assert os.listdir() == []


def test_a_run_that_diverges_is_an_exception_at_each_call():
    diverging = [*SMALL, "recipe.lr_start=1", "recipe.lr_peak=1e30"]
    for _ in range(2):
        with pytest.raises(TrainingError, match="loss"):
            pgt.train(diverging)
    with pytest.raises(TrainingError, match="1 of 2 runs failed"):
        pgt.train(["-m", *last_wins(*diverging, "recipe.lr_peak=0.01,1e30")])
    assert set(runs.frame("runs").status) == {"finished", "diverged"}


def test_a_failure_is_noted_in_the_folder_as_by_the_command(monkeypatch):
    monkeypatch.setattr("pgt.training.run.train_epochs", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pgt.train(SMALL)
    [folder] = Path("runs/custom").iterdir()
    failure = read_failure(folder)
    assert "ZeroDivisionError" in failure.reason
    assert failure.command == ["pgt train", *SMALL]


def test_only_the_main_thread_of_a_program_of_its_own_trains(monkeypatch):
    said = []

    def call():
        with pytest.raises(InputError) as raised:
            pgt.train(SMALL)
        said.append(str(raised.value))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    with monkeypatch.context() as patch:
        for name, value in {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
            patch.setenv(name, value)
        call()
    assert ["main thread" in said[0], "trainer.devices" in said[1], os.listdir()] == [True, True, []]


def test_a_signal_stops_it_in_order_and_the_next_call_goes_on(monkeypatch, capsys):
    pause, looks = Breaks.pause, itertools.count(1)

    def sent_a_signal(breaks):
        if next(looks) == 3:
            signal.raise_signal(signal.SIGTERM)  # handled here, while one from os.kill may come a step later
        pause(breaks)

    monkeypatch.setattr(Breaks, "pause", sent_a_signal)
    words = last_wins(*SMALL, "recipe.epochs=2", "data.num_samples=32")  # four steps an epoch
    with pytest.raises(Stopped, match=r"SIGTERM after step 3 of epoch 1; .* goes on"):
        pgt.train(words)
    [status] = runs.frame("runs").status
    assert status == "unfinished"
    capsys.readouterr()
    assert pgt.train(words)["status"] == "finished"
    assert "from epoch 1, step 4  ->" in capsys.readouterr().out


@pytest.mark.slow
def test_a_script_needs_no_guard():
    """Neither the processes that train nor those that read images run it again."""
    for split in ("train", "val"):
        generate(Path("set") / split, 16)
    words = last_wins(
        *SMALL, "data=imagefolder", "data.root=set", "data.image_size=32", "data.backend=torchvision",
        "data.workers=1", "recipe.local_batch=4", "trainer.devices=2", "recipe.global_batch=8",
    )  # fmt: skip
    words = [word for word in words if not word.startswith("data.num_samples")]
    Path("script.py").write_text(f"import pgt\nprint('begun')\nprint(pgt.train({words!r})['status'])\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "script.py"], env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert (lines[0], lines.count("begun"), lines[-1]) == ("begun", 1, "finished")


def test_files_that_were_edited_since_the_last_call_count(tmp_path):
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.parent.mkdir()
    text = "# @package _global_\ndefaults: [{override /model: resnet20}]\nrecipe: {lr_peak: RATE}\n"
    found = []
    for rate in ("0.1", "0.5"):
        mine.write_text(text.replace("RATE", rate))
        words = ["experiment=mine", *(word for word in TINY if not word.startswith("experiment"))]
        found.append(pgt.train([*words, "--config-dir", str(tmp_path)])["recipe.lr_peak"])
    assert found == [0.1, 0.5]


@pytest.mark.parametrize("words", [["hydra/launcher=slurm"], ["-m", "hydra/launcher=slurm", "seed=0,1"]])
def test_jobs_for_a_cluster_are_not_trained_here(words):
    with pytest.raises(InputError, match="to `pgt train`"):
        pgt.train([*TINY, *words])
