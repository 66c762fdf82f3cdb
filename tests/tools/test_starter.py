"""`pgt init`: the files are there, fit, and overwrite nothing."""

import os
from pathlib import Path

import pytest

from pgt.cli.main import main
from tests.conftest import ROOT


def test_a_starter_has_an_experiment_that_composes_and_every_template(capsys):
    assert main(["init", "my own"]) == 0
    assert "--config-dir 'my own'" in capsys.readouterr().out
    copied = {str(path.relative_to("my own")) for path in Path("my own").rglob("*") if path.is_file()}
    assert copied >= {"README.md", "experiment/mine.yaml", "scripts/prepare_imagenet.py"}
    assert "scripts/prepare_tiny_imagenet.py" in copied
    examples = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    templates = {f"launch/{path.name}" for path in (ROOT / "launch").iterdir()}
    checkout = {f"launch/{name}" for name in ("Dockerfile", "apptainer.def", "skypilot.yaml")}  # they copy its files
    assert copied & (examples | templates) == examples | (templates - checkout)
    assert main(["train", "experiment=mine", "method.alpha=0.5", "--cfg", "job", "--config-dir", "my own"]) == 0
    assert main(["plan", "experiment=mine", "seed=0,1", "--config-dir", "my own"]) == 0
    assert "4 distinct runs" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "launch/sweep.sbatch"])
def test_nothing_is_overwritten(capsys, name):
    mine = Path("own", name)
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert main(["init", "own"]) == 2
    assert str(mine) in capsys.readouterr().err
    assert [path for path in Path("own").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_a_folder_with_other_files_is_taken():
    Path("own").mkdir()
    Path("own/notes.txt").touch()
    assert main(["init", "own"]) == 0
    assert {"notes.txt", "experiment"} <= set(os.listdir("own"))
