"""What is said of epochs: a network that learns nothing."""

from pathlib import Path

import pytest

from pgt.cli.main import main
from pgt.runs.folder import find, read_metrics
from tests.conftest import train

DIGITS = ("experiment=demo/bn", "recipe.epochs=4", "recipe.warmup_epochs=1")


@pytest.fixture
def lost(capsys):
    """The folder, the summary and the output of a run whose α of 0 has nothing to learn from."""
    summary = train(*DIGITS, "method.alpha=0")
    [(path, _)] = find(Path("runs"))
    return path, summary, capsys.readouterr().out


def test_a_network_that_learns_nothing_says_so_once_and_wherever_the_run_is_shown(lost, capsys):
    path, summary, out = lost
    assert out.count("learns nothing") == 1
    assert "of 688 filters are zeroed out: try a smaller recipe.lr_peak" in out
    epochs = read_metrics(path, "epoch")
    assert ["warning" in record for record in epochs] == [False, False, True, True]
    assert summary.status == "finished"
    assert summary.warning == epochs[-1]["warning"]
    for command in (["status"], ["table", "demo/bn"]):
        assert main(command) == 0
        assert f"- {path}: {summary.warning}" in capsys.readouterr().out


def test_one_that_learns_has_no_warning_and_none_is_judged_while_it_warms_up(capsys, monkeypatch):
    assert train(*DIGITS, "recipe.epochs=3").warning is None
    assert "learns nothing" not in capsys.readouterr().out
    monkeypatch.setattr("pgt.training.epochs.SURE_EPOCHS", 1)
    warming = ("recipe.epochs=3", "recipe.warmup_epochs=2", "method.alpha=0")
    train(*DIGITS, *warming)
    [folder] = [path for path, found in find(Path("runs")) if found.warning]
    assert ["warning" in record for record in read_metrics(folder, "epoch")] == [False, False, True]
