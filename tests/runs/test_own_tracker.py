"""A tracker of the user's own: docs/trackers.md, carried out, and what is refused."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from pgt.cli.main import main
from pgt.config.identity import identity, run_id
from pgt.config.schema import NOT_LOGGERS
from tests.conftest import ROOT, TINY, compose, last_wins

SECTION = (ROOT / "docs/trackers.md").read_text().partition("## A tracker of your own")[2]
OWN = ("--config-dir", "own")


def block(language):
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def _own():
    """The files of the page."""
    for text in (block("python"), block("yaml")):
        path = Path(re.match("# (.*)\n", text)[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    path = [*sys.path]
    yield
    assert sys.path == path
    sys.modules.pop("tracker", None)


@pytest.mark.usefixtures("_own")
def test_the_page_can_be_followed(capsys):
    train, mirror = block("sh").splitlines()
    assert main(shlex.split(train)[1:]) == 0
    [file] = Path("runs").glob("demo/bn/*/mine/epochs.csv")
    first, *epochs, last = [line.split(";") for line in file.read_text().splitlines()]
    assert first == ["demo/bn pgt α=0.25 seed 0", file.parts[-3]]
    assert [row[1] for row in epochs] == ["0", "1", "2"]
    assert last == ["finished", "0", max((row[2] for row in epochs), key=float)]
    capsys.readouterr()
    assert main(shlex.split(mirror)[1:]) == 0
    assert "left alone" in capsys.readouterr().out
    whole = file.read_text()
    Path("tracker.py").rename("own/tracker.py")  # the folder of --config-dir will do, too
    del sys.modules["tracker"]
    file.unlink()
    file.parent.rmdir()
    assert main(shlex.split(train)[1:]) == 0
    command = shlex.split(re.search("`(pgt mirror .*)` sends", capsys.readouterr().out)[1])
    assert main(command[1:]) == 0
    assert file.read_text() == whole


@pytest.mark.usefixtures("_own")
def test_a_tracker_changes_no_run_id_and_is_kept_in_the_config():
    plain, own = compose(*TINY, "model=resnet20"), ["train", *TINY, "model=resnet20", "logger=mine", *OWN]
    assert main([*own, "logger.mine.delimiter=x"]) == 0
    [folder] = Path("runs/custom").iterdir()
    assert folder.name == run_id(identity(plain))
    assert "_target_: tracker.Csv" in (folder / "config.yaml").read_text()


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize(
    ("logger", "words"),
    [
        ("mine: {_target_: trakcer.Csv}", ["logger.mine (trakcer.Csv)", "trakcer", "--config-dir"]),
        ("mine: {_target_: tracker.Nothing}", ["logger.mine (tracker.Nothing)", "Nothing"]),
        ("mine: {_target_: math.pi}", ["logger.mine (math.pi)", "not float"]),
        ("mine: {_target_: tracker.Csv, comma: x}", ["logger.mine (tracker.Csv)", "'comma'", "delimiter=','"]),
        ("mine: {delimiter: x}", ["logger has no mine", "_target_: package.Class"]),
        *((f"{name}: {{_target_: tracker.Csv}}", [f"logger cannot be called {name}"]) for name in sorted(NOT_LOGGERS)),
        ("mine: text", ["logger has no mine", "_target_: package.Class"]),
        ("../mine: {_target_: tracker.Csv}", ["logger has no ../mine"]),
    ],
)
def test_a_wrong_tracker_gets_one_line_before_anything_is_written(logger, words, capsys):
    Path("own/logger/mine.yaml").write_text(logger)
    assert main(["train", *TINY, "logger=mine", *OWN]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in words), captured.err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("_own")
def test_a_tracker_that_cannot_start_costs_no_run(capsys):
    Path("own/logger/mine.yaml").write_text("mine: {_target_: failing.Tracker}")
    Path("own/failing.py").write_text("def Tracker(about):\n    raise OSError")
    assert main(["train", *last_wins(*TINY, "model=resnet20"), "logger=mine", *OWN]) == 0
    assert "warning: mine has failed and is left alone" in capsys.readouterr().out


@pytest.mark.usefixtures("_own")
def test_a_run_that_starts_over_starts_its_trackers_over():
    run = ["train", *last_wins(*TINY, "model=resnet20"), "logger=mine", *OWN]
    assert main(run) == 0
    [kept] = Path("runs").glob("custom/*/mine")
    (kept / "of_the_first_run").touch()
    assert main([*run, "trainer.force=true"]) == 0
    assert [path.name for path in kept.iterdir()] == ["epochs.csv"]


def test_only_loggers_and_their_keys_are_for_mirror(capsys):
    assert main(["mirror", "nothing"]) == 2
    assert "none, tensorboard, wandb" in capsys.readouterr().err
    assert main(["mirror", "none"]) == 2
    assert "logger=none takes no records" in capsys.readouterr().err
    assert main(["mirror", "tensorboard", "demo", "seed=1"]) == 2
    assert "leave out 'seed=1'" in capsys.readouterr().err
    assert main(["mirror", "tensorboard", "--project", "mine"]) == 2
    assert "--project is not for tensorboard" in capsys.readouterr().err
