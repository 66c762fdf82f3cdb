"""What is said of epochs: a network that learns nothing."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pgt.cli.main import main
from pgt.models import build
from pgt.runs.folder import find, read_metrics
from pgt.training import epochs
from tests.conftest import TINY, train

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
    found = read_metrics(path, "epoch")
    assert ["warning" in record for record in found] == [False, False, True, True]
    assert summary.status == "finished"
    assert summary.warning == found[-1]["warning"]
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


def test_one_that_has_just_begun_to_learn_has_no_warning():
    """Its training accuracy, a mean over the epoch, is still at chance; the test set, seen after it, is not."""
    record = {"epoch": 2, "train_top1": 14.17, "train_loss": 2.286}
    train_loader = SimpleNamespace(num_classes=10, num_samples=898)
    test_loader = SimpleNamespace(num_classes=10, num_samples=899)
    network = build("resnet20", 10)
    assert "warning" in epochs.no_progress(record, network, train_loader, test_loader)
    assert epochs.no_progress({**record, "test_top1": 22.58}, network, train_loader, test_loader) == {}


def test_two_warnings_of_one_epoch_are_both_kept_and_said(monkeypatch, capsys):
    monkeypatch.setattr("pgt.training.epochs.SURE_EPOCHS", 1)
    still = ("method=authors_hook", "model=resnet20", "recipe.lr_start=1e-12", "recipe.lr_peak=1e-12")
    warning = train(*TINY, *still).warning
    assert "S/N²" in warning
    assert "it learns nothing so far" in warning
    out = capsys.readouterr().out
    assert (out.count("warning: S/N²"), out.count("warning: it learns nothing")) == (1, 1)
