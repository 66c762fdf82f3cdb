"""What Hydra calls for each job, and what is said of a sweep afterwards."""

import math

import pytest

from pgt.cli.main import main
from pgt.core.errors import InputError, TrainingError
from pgt.launch import jobs
from pgt.runs.folder import DIVERGED, FINISHED
from pgt.training import job as training
from tests.conftest import TINY, compose

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
        folder.mkdir(parents=True)
        training.runs.write_summary(folder, summary)
        return summary

    monkeypatch.setattr(jobs, "run", run)
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


def test_a_job_that_trained_elsewhere_counts_by_its_folder(outcomes, capsys):
    """A launcher may call the task in another process: only the run folder tells how the job ended."""
    outcomes |= {0: FINISHED, 1: TrainingError("no"), 2: FINISHED}
    configs = [compose(*TINY, "model=resnet20", f"seed={seed}") for seed in range(3)]
    for seed in (0, 2):
        jobs.run(configs[seed])
    jobs._codes.clear()
    assert jobs._exit_code(configs) == 1
    assert "1 of 3 runs failed" in capsys.readouterr().err


def test_the_task_returns_what_a_sweeper_optimises(outcomes, monkeypatch):
    outcomes |= {0: FINISHED, 1: DIVERGED, 2: TrainingError("no")}
    monkeypatch.setattr(jobs, "validate", lambda config: config)
    monkeypatch.setattr(jobs, "_label", lambda: "")
    found = [jobs.task(compose(*TINY, "model=resnet20", f"seed={seed}")) for seed in range(3)]
    assert found[0] == 50.0
    assert math.isnan(found[1])
    assert math.isnan(found[2])
