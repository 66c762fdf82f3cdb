"""Other people's launchers and sweepers of Hydra: each trains every job, and the run folders tell how they ended."""

import re
from pathlib import Path

import pytest

from pgt.cli.main import main
from pgt.config.compose import compose_all
from pgt.runs.folder import DIVERGED, FINISHED, find
from pgt.runs.sweeps import runs_of
from tests.conftest import TINY, last_wins, pgt

SWEEP = last_wins("train", "-m", *TINY, "model=resnet20", "recipe.epochs=2")


def sweep_folder():
    return min(Path("runs/.sweeps").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_launcher_trains_every_job_in_other_processes(launcher):
    """One of the two diverges: that is known only from its folder."""
    done = pgt(*SWEEP, f"hydra/launcher={launcher}", "recipe.lr_peak=0.01,1e30")
    assert done.returncode == 1, done.stderr
    assert "1 of 2 runs failed" in done.stderr
    assert sorted(summary.status for _, summary in find(Path("runs"))) == [DIVERGED, FINISHED]
    assert runs_of(sweep_folder()).keys() == {0, 1}
    said = done.stdout + "".join(path.read_text() for path in Path("runs").rglob("*_log.out"))
    assert "[1/2] " in said


@pytest.mark.slow
def test_a_sweeper_chooses_values_seeks_the_best_accuracy_and_goes_on():
    search = (*SWEEP, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1",
              "method.alpha=interval(0.05,1)")  # fmt: skip
    done = pgt(*search)
    assert done.returncode == 0, done.stderr
    assert "[3/3] " in done.stdout
    runs = find(Path("runs"))
    alphas = [summary.identity["method"]["alpha"] for _, summary in runs]
    assert len(set(alphas)) == 3
    assert all(0.05 <= alpha <= 1 for alpha in alphas)
    results = (sweep_folder() / "optimization_results.yaml").read_text()
    best = float(re.search(r"best_value: (\S+)", results)[1])
    assert best == max(summary.test_top1_best for _, summary in runs)

    again = pgt(*search)  # the same values: nothing is trained again
    assert again.returncode == 0
    assert [summary.started for _, summary in find(Path("runs"))] == [summary.started for _, summary in runs]
    assert "finished earlier" in again.stdout


@pytest.mark.slow
def test_the_exit_code_of_a_search_is_that_of_its_jobs_wherever_they_are_listed():
    """The folder has the time in its name; and a search needs -m: without it, one run is trained."""
    search = (*SWEEP, "hydra/sweeper=optuna", "recipe.lr_peak=1e30")
    found = pgt(*search, "hydra.sweeper.n_trials=1", 'hydra.sweep.dir="s/${now:%H-%M-%S-%f}"', "seed=choice(0)")
    assert found.returncode == 1, found.stderr
    [folder] = Path("s").iterdir()
    assert runs_of(folder).keys() == {0}
    again = pgt(*(word for word in (*search, "seed=0") if word != "-m"))
    assert (again.returncode, "diverged" in again.stderr + again.stdout) == (1, True)


@pytest.mark.parametrize(
    ("choice", "package"),
    [("hydra/launcher=ray", "hydra-ray-launcher"), ("hydra/sweeper=ax", "hydra-ax-sweeper")],
)
def test_a_plugin_that_is_not_installed_is_named_with_its_package(capsys, choice, package):
    assert main((*SWEEP, choice, "seed=0,1")) == 2
    assert f"pip install {package}" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("more", "fact"),
    [
        (["hydra/sweeper=ax"], "pip install hydra-ax-sweeper"),
        (["hydra/sweeper=optun"], "did you mean 'optuna'?"),
        (["hydra/launcher=ray", "hydra/sweeper=optuna"], "pip install hydra-ray-launcher"),
        (["hydra/sweeper=optuna", "experiment=demo/bn/pgt"], "did you mean 'demo/bn'?"),
    ],
)
def test_an_interval_does_not_hide_what_else_is_wrong(capsys, more, fact):
    assert main(["train", "-m", *more, "method.alpha=interval(0.05,1)"]) == 2
    assert fact in capsys.readouterr().err


def test_a_search_may_go_over_all_experiments_of_a_folder():
    search = ["experiment=demo/all", "hydra/sweeper=optuna", "method.alpha=interval(0.1,1)"]
    assert [config.experiment for config in compose_all(search, multirun=True)] == ["demo/bn", "demo/nobn"]


@pytest.mark.parametrize("folder", ["'${oc.env:NO_SUCH_VARIABLE}/s'", "'${hydra.job.no_such}'"])
def test_a_folder_of_a_sweep_that_cannot_be_resolved_gets_one_line(capsys, folder):
    assert main((*SWEEP, "seed=0,1", f"hydra.sweep.dir={folder}")) == 2
    err = capsys.readouterr().err
    assert "hydra.sweep.dir" in err
    assert ("export NO_SUCH_VARIABLE=..." in err) == ("NO_SUCH" in folder)
    assert not Path("runs").exists()


def test_both_ends_of_an_interval_are_checked_before_anything_is_written(capsys):
    assert main((*SWEEP, "hydra/sweeper=optuna", "method.alpha=interval(0.05,3)")) == 2
    assert "method.alpha must lie in [0, 1], got 3.0" in capsys.readouterr().err
    assert not Path("runs").exists()
