"""What Hydra calls for each job, and what is said of a sweep afterwards."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pgt.cli.main import main
from pgt.core.errors import HeldError, InputError, TrainingError
from pgt.launch import jobs, one_job
from pgt.runs.folder import DIVERGED, FINISHED, UNFINISHED, find, lock, read_summary
from pgt.training import job as training
from tests.conftest import ROOT, SECONDS, TINY, compose, last_wins, until

SWEEP = ("train", "-m", *TINY, "model=resnet20", "seed=0,1,2")


@pytest.fixture
def outcomes(monkeypatch):
    """Stand-ins for the runs of three seeds: a status, or an exception; their run folders say the same."""
    found = {}

    def run(config, label=""):
        print(f"{label}trains")
        outcome = found[config.seed]
        if isinstance(outcome, Exception):
            raise outcome
        summary = training.prepare(config).summary
        summary.status, summary.test_top1_best = outcome, 50.0 + config.seed
        folder = training.folder_of(config)
        folder.mkdir(parents=True, exist_ok=True)
        training.runs.write_summary(folder, summary)
        return summary

    monkeypatch.setattr(one_job, "run", run)
    return found


@pytest.mark.parametrize(
    ("second", "third", "code", "failed"),
    [
        (FINISHED, FINISHED, 0, None),
        (DIVERGED, FINISHED, 1, "1 of 3 runs failed"),
        (TrainingError("no"), InputError("no"), 2, "2 of 3 runs failed"),
        (KeyError("a fault"), FINISHED, 1, "1 of 3 runs failed"),
        (FileNotFoundError(2, "No such file", "a"), FINISHED, 2, "1 of 3 runs failed"),
    ],
)
def test_a_sweep_goes_on_after_a_failure_and_counts_it(outcomes, capsys, second, third, code, failed):
    outcomes |= {0: FINISHED, 1: second, 2: third}
    assert main(SWEEP) == code
    out, err = capsys.readouterr()
    assert [f"[{number}/3] trains" in out for number in (1, 2, 3)] == [True] * 3
    assert (failed in err) if failed else (err == "")


@pytest.mark.parametrize("left", [FINISHED, UNFINISHED])
@pytest.mark.parametrize("race", [False, True])
def test_a_run_that_another_process_trains_is_put_off_and_never_a_failure(outcomes, monkeypatch, capsys, left, race):
    """The other process ends it while this sweep trains its third run; what it leaves unfinished is trained here."""
    configs = [compose(*TINY, "model=resnet20", f"seed={seed}") for seed in range(3)]
    other, stand_in, trained = ExitStack(), one_job.run, []
    folder = training.folder_of(configs[1])

    def run(config, label=""):
        trained.append(config.seed)
        if config.seed == 2:
            summary = training.prepare(configs[1]).summary
            training.runs.write_summary(folder, replace(summary, status=left))
            other.close()
        if race and trained == [0, 1]:
            raise HeldError("is being trained")
        earlier = read_summary(training.folder_of(config))
        return earlier if earlier is not None and earlier.status == FINISHED else stand_in(config, label)

    monkeypatch.setattr(one_job, "run", run)
    monkeypatch.setattr(one_job, "POLL_SECONDS", 0.05)
    outcomes |= dict.fromkeys(range(3), FINISHED)
    folder.mkdir(parents=True)
    if not race:
        other.enter_context(lock(folder))
    assert main(SWEEP) == 0
    again = [1] if left == UNFINISHED else []
    assert trained == ([0, 1, 2] if race else [0, 2]) + again
    out, err = capsys.readouterr()
    assert "[2/3] is put off" in out
    assert ("[2/3] trains" in out) == (left == UNFINISHED)
    assert err == ""


@pytest.mark.slow
def test_two_identical_sweeps_share_the_work():
    """The first one is held still in its first run until the second one trains, however fast the machine is."""
    command = [sys.executable, "-m", "pgt", *last_wins(*SWEEP, "seed=0,1,2,3", "recipe.epochs=20")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    trains, logs = ": 20 epochs of 2 steps  ->", [Path("first.log"), Path("second.log")]

    with ExitStack() as ends:

        def training(log):
            with log.open("w") as said:
                sweep = subprocess.Popen(command, env=environment, stdout=said)
            ends.callback(sweep.wait)
            ends.callback(sweep.kill)
            until(lambda: trains in log.read_text(), sweep)
            return sweep

        first = training(logs[0])
        first.send_signal(signal.SIGSTOP)
        second = training(logs[1])
        first.send_signal(signal.SIGCONT)
        codes = [sweep.wait(timeout=SECONDS) for sweep in (first, second)]

    begun, joined = (log.read_text() for log in logs)
    assert codes == [0, 0], begun + joined
    found = find(Path("runs"))
    assert [summary.status for _, summary in found] == [FINISHED] * 4
    assert [len(json.loads((path / "environment.json").read_text())["starts"]) for path, _ in found] == [1] * 4
    assert "[1/4] is put off to the end of the sweep" in joined
    assert begun.count(trains) + joined.count(trains) == 4


def test_the_task_returns_what_a_sweeper_optimises(outcomes, monkeypatch):
    outcomes |= {0: FINISHED, 1: DIVERGED, 2: TrainingError("no")}
    found = []

    def task(composed, sweep):
        found.append(original(composed, sweep))
        return found[-1]

    original = jobs.task
    monkeypatch.setattr(jobs, "task", task)
    assert main(SWEEP) == 1
    assert found == [50.0, 0.0, 0.0]


GRID = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid")


@pytest.mark.filterwarnings("ignore")  # importing optuna warns
def test_a_search_goes_on_after_a_failure_and_a_grid_has_as_many_jobs_as_points(outcomes, capsys):
    outcomes |= {0: DIVERGED, 1: FINISHED, 2: FINISHED}
    assert main(last_wins(*SWEEP, *GRID, "seed=choice(0,1,2)")) == 1
    out, err = capsys.readouterr()
    assert [f"[{number}] trains" in out for number in (1, 2, 3)] == [True] * 3
    assert "1 of 3 runs failed" in err


@pytest.mark.filterwarnings("ignore")  # importing optuna warns
def test_values_that_do_not_go_together_do_not_end_a_search(outcomes, capsys):
    outcomes[0] = FINISHED
    sizes = ("recipe.global_batch=choice(8,16)", "recipe.local_batch=choice(8,16)")
    assert main(last_wins(*SWEEP, *GRID, *sizes, "seed=0")) == 2
    out, err = capsys.readouterr()
    assert out.count("trains") == 3
    assert "recipe.local_batch (16)" in err
    assert "1 of 4 runs failed" in err
