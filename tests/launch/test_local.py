"""Jobs side by side on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest

from pgt.cli.main import main
from pgt.core import machine
from pgt.core.errors import InputError, LostRankError, Stopped, TrainingError
from pgt.core.machine import cpus
from pgt.launch import local
from pgt.launch.local import slots
from pgt.runs.folder import DIVERGED, FINISHED, UNFINISHED, find, holder, write_summary
from pgt.training import job as training
from tests.conftest import SECONDS, TINY, last_wins, pgt, until
from tests.launch.test_ranks import eventually_none, marked  # noqa: F401  # a fixture

SWEEP = last_wins("train", "-m", *TINY, "model=resnet20", "hydra/launcher=local", "hydra.launcher.cpus_per_job=1")
needs_two = pytest.mark.skipif(cpus() < 2, reason="needs two CPUs")


@pytest.mark.parametrize(
    ("cpus", "gpus", "gpus_per_job", "cpus_per_job", "expected"),
    [
        (4, "", None, None, ["0", "1", "2", "3"]),
        (5, "", None, 2, ["01", "23"]),
        (8, "0123", None, None, ["01 0", "23 1", "45 2", "67 3"]),
        (8, "5678", 2, None, ["0123 5,6", "4567 7,8"]),
        (8, "0123", 0, 4, ["0123", "4567"]),
        (2, "0123", 1, 1, ["0 0", "1 1"]),
        (1, "01", 1, None, ["0 0"]),
    ],
)
def test_each_job_has_its_own_part_of_the_machine(cpus, gpus, gpus_per_job, cpus_per_job, expected):
    found = slots(range(cpus), gpus, gpus_per_job, cpus_per_job)
    assert [f"{''.join(map(str, sorted(slot.cpus)))} {slot.gpus}".strip() for slot in found] == expected


def test_a_containers_quota_bounds_the_jobs_side_by_side(monkeypatch):
    """16 CPUs are visible, and their time is that of two."""
    monkeypatch.setattr(machine, "affinity", lambda: frozenset(range(16)))
    monkeypatch.setattr(machine, "cpus", lambda: 2)
    with pytest.raises(InputError, match="this machine has 2 CPUs"):
        local.launch([], Path("sweep"), gpus_per_job=None, cpus_per_job=3)


@pytest.mark.parametrize(("gpus_per_job", "cpus_per_job"), [(2, None), (None, 5)])
def test_a_job_that_needs_more_than_the_machine_has_is_refused(gpus_per_job, cpus_per_job):
    with pytest.raises(InputError, match="this machine has"):
        slots(range(4), "0", gpus_per_job, cpus_per_job)


def test_a_request_that_does_not_fit_starts_nothing(capsys):
    assert main((*last_wins(*SWEEP, "hydra.launcher.cpus_per_job=999"), "seed=0,1")) == 2
    assert "cpus_per_job=999" in capsys.readouterr().err
    assert list(Path("runs").glob("custom/*")) == []


def test_more_devices_than_each_job_gets_start_nothing(monkeypatch, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("pgt.training.ranks.visible_gpus", lambda: 4)
    assert main(last_wins(*SWEEP, "recipe.local_batch=4", "trainer.devices=2", "seed=0,1")) == 2
    assert "hydra.launcher.gpus_per_job=2" in capsys.readouterr().err
    assert list(Path("runs").glob("custom/*")) == []


@pytest.fixture
def outcomes(monkeypatch):
    """What stand-ins for the processes of the jobs do with a run's folder and send, by the seeds of the jobs."""
    found = {}

    def start_worker(function, argument, environment, name):
        job = argument[0]
        job.folder.mkdir(parents=True)
        ours, theirs = Pipe()
        theirs.send(found[job.config.seed](job))
        return SimpleNamespace(exitcode=0), ours

    monkeypatch.setattr(local, "start_worker", start_worker)
    monkeypatch.setattr(local, "end_workers", lambda workers: None)
    return found


def ends(status, returns=50.0):
    """A run of that status, and what the process of its job sends."""

    def outcome(job):
        summary = replace(training.prepare(job.config).summary, status=status, test_top1_best=50.0)
        summary.train_top1 = summary.test_top1_final = summary.images_per_second = 50.0
        write_summary(job.folder, summary)
        return returns

    return outcome


def damaged(job):
    (job.folder / "summary.json").write_text("{")
    return 50.0


def unwritable(job):
    (job.folder / "failure.json").mkdir()  # its replacement fails, as on a full disk
    return TrainingError("the process was killed")


def aborted(job):
    return LostRankError("was killed by SIGABRT")


@pytest.mark.parametrize(
    ("first", "code", "said"),
    [
        (ends(UNFINISHED, Stopped(signal.SIGTERM, "after step 3")), 1, "stopped after step 3"),
        (ends(UNFINISHED), 1, "not finished; its log says why"),
        (damaged, 2, "summary.json (JSONDecodeError): delete this file"),
        (unwritable, 1, "refused; its log says why"),
        (aborted, 1, "failed: its process was killed by SIGABRT; the same command goes on"),
    ],
)
def test_however_a_job_ends_the_others_go_on(outcomes, capsys, first, code, said):
    outcomes |= {0: first, 1: ends(FINISHED), 2: ends(FINISHED)}
    assert main((*SWEEP, "seed=0,1,2")) == code
    out, err = capsys.readouterr()
    assert said in out
    assert out.count("best 50.00%") == 2
    assert "1 of 3 runs failed" in err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # importing optuna warns
def test_values_that_do_not_go_together_do_not_end_a_search(outcomes, capsys):
    outcomes[0] = ends(FINISHED)
    search = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid",
              "recipe.global_batch=choice(8,16)", "recipe.local_batch=choice(8,16)")  # fmt: skip
    assert main(last_wins(*SWEEP, *search)) == 2
    out, err = capsys.readouterr()
    assert out.count("best 50.00%") == 3
    assert "recipe.local_batch (16)" in err
    assert "1 of 4 runs failed" in err


@pytest.mark.slow
def test_a_failed_job_does_not_stop_the_others():
    done = pgt(*SWEEP, "recipe.lr_peak=1e30,0.01,0.02", "recipe.epochs=2")
    assert done.returncode == 1, done.stderr
    assert "1 of 3 runs failed" in done.stderr
    assert "[1/3] " in done.stdout
    assert "failed: the loss is not finite" in done.stdout
    runs = find(Path("runs"))
    assert sorted(summary.status for _, summary in runs) == [DIVERGED, FINISHED, FINISHED]
    starts = [json.loads((folder / "environment.json").read_text())["starts"] for folder, _ in runs]
    assert [[start["cpus"] for start in each] for each in starts] == [[1], [1], [1]]


@pytest.mark.slow
@needs_two
@pytest.mark.parametrize("death", ["Ctrl-C", "SIGKILL"])
def test_a_sweep_that_ends_early_leaves_no_process_and_does_each_run_once(marked, death):  # noqa: F811
    """Ctrl-C stops both jobs that train, in order; the third one has not begun.

    The first job with a checkpoint is held still until the other one has its own, so that neither can end before.
    """
    long = last_wins(*SWEEP, "data.num_samples=32", "recipe.epochs=15", "seed=0,1,2")
    command = [sys.executable, "-m", "pgt", *long]
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def begun():
        return [folder for folder, summary in find(Path("runs")) if summary.epochs]

    try:
        until(begun, sweep)
        held = int(re.search(r"process (\d+)", holder(begun()[0]))[1])
        os.kill(held, signal.SIGSTOP)
        until(lambda: len(begun()) == 2, sweep)
        os.kill(held, signal.SIGCONT)
        if death == "Ctrl-C":
            os.killpg(sweep.pid, signal.SIGINT)
        else:
            sweep.kill()
        out, err = sweep.communicate(timeout=SECONDS)
    except BaseException:
        os.killpg(sweep.pid, signal.SIGKILL)
        raise
    assert eventually_none(marked)
    assert [summary.status for _, summary in find(Path("runs"))] == [UNFINISHED] * 2
    if death == "Ctrl-C":
        assert sweep.returncode == 130
        assert "stopped by Ctrl-C with 0 of 3 runs done; the same command goes on" in err
        assert out.count(": stopped after step ") == 2

    assert pgt(*last_wins(*long)).returncode == 0
    runs = find(Path("runs"))
    assert [summary.status for _, summary in runs] == [FINISHED] * 3
    starts = [len(json.loads((folder / "environment.json").read_text())["starts"]) for folder, _ in runs]
    assert sorted(starts) == [1, 2, 2]
