"""The examples of docs/extend.md, written to a folder outside the project and run from another one."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import pgt.runs
from pgt.cli.main import main
from pgt.runs.folder import find
from tests.conftest import ROOT
from tests.conftest import pgt as pgt_process

PAGE = (ROOT / "docs/extend.md").read_text()
FILES = re.findall(r"`(own/[\w/.]+)`(?:(?!\n\n).)*\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
"""Path and content of each file of the page: a paragraph names it, and a block of code follows."""

OWN = ("--config-dir", "../lab/own")

STOPPING = """import os, pathlib, signal

def stop(parameters, step, *, at):
    marker = pathlib.Path("stopped")
    if step == at and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture
def _lab(tmp_path, monkeypatch):
    """The page's files, and a transform that stops a run once."""
    for name, text in [*FILES, ("own/my_stop.py", STOPPING)]:
        path = tmp_path / "lab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for module in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[module]


def test_the_page_has_an_example_of_everything():
    names = {name for name, _ in FILES}
    assert {name.split("/")[1] for name in names if name.endswith(".yaml")} == {
        "data", "experiment", "method", "model", "recipe"
    }  # fmt: skip
    assert {name for name in names if name.endswith(".py")} == {
        "own/my_transforms.py", "own/my_losses.py", "own/my_networks.py"
    }  # fmt: skip
    assert all(text.count("\n") <= 12 for _, text in FILES)


@pytest.mark.slow
@pytest.mark.usefixtures("_lab")
def test_the_pages_commands_train_and_show_the_pages_examples(capsys):
    [block] = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line)[1:] for line in block.replace(" own", " ../lab/own").splitlines()]
    said = {}
    for command in commands:
        assert main(command) == 0
        said[command[0]] = capsys.readouterr().out
    assert "6 distinct runs" in said["plan"]
    assert "my_networks.Small: speed not known" in said["plan"]
    assert "6 finished" in said["status"]
    for method in ("my_transforms.centralize+pgt", "my_losses.focal", "baseline"):
        assert method in said["table"]
    assert Path("figure4.svg").is_file()

    runs = pgt.runs.frame("runs", "mine")
    assert set(runs["method"]) == {"baseline", "my_transforms.centralize+pgt", "my_losses.focal"}
    assert set(runs["model.name"]) == {"my_networks.Small"}
    assert set(runs["model.width"]) == {16}
    assert runs["method.transforms.0.strength"].dropna().tolist() == [1.0, 1.0]
    assert (runs.test_top1_best > 10).all()

    [train] = [command for command in commands if command[0] == "train"]
    assert main(train) == 0
    assert capsys.readouterr().out.count("finished earlier") == 6


@pytest.mark.usefixtures("_lab")
def test_a_stopped_run_of_ones_own_goes_on_to_the_same_weights():
    """Its network has dropout, so that random numbers must go on, too."""
    run = [
        "train",
        "experiment=mine/small",
        "method=centralized",
        *OWN,
        "method.transforms=[{_target_: my_transforms.centralize, strength: 0.5}, {_target_: my_stop.stop, at: 19}]",
    ]
    weights = {}
    for root, codes in (("stopped-once", [143, 0]), ("undisturbed", [0])):
        assert [main([*run, f"paths.runs={root}"]) for _ in codes] == codes
        [(folder, summary)] = find(Path(root))
        assert (summary.status, summary.epochs) == ("finished", 3)
        weights[root] = torch.load(folder / "checkpoints/last.pt", weights_only=True)["model"]
    for key, value in weights["undisturbed"].items():
        assert torch.equal(value, weights["stopped-once"][key]), key


@pytest.mark.usefixtures("_lab")
def test_an_image_folder_of_ones_own_is_a_data_set(monkeypatch, capsys):
    for split in ("train", "val"):
        for index in range(8):
            path = Path("pets", split, "cat" if index % 2 else "dog", f"{index}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (30 * index, 0, 0)).save(path)
    monkeypatch.setenv("PETS", "pets")
    assert main(["train", "data=pets", "data.backend=torchvision", "data.workers=0", "recipe=short", "model=small",
                 "recipe.global_batch=4", "recipe.local_batch=4", *OWN]) == 0  # fmt: skip
    [(_, summary)] = find(Path("runs"))
    assert (summary.status, summary.identity["data"]["image_size"]) == ("finished", 32)


@pytest.mark.usefixtures("_lab")
def test_list_names_ones_own_beside_ours(capsys):
    for what, line in {"experiments": "mine/small +My network with and", "methods": "focal +Focal loss.",
                       "models": "small +One convolution.", "data": "pets +My pets.",
                       "recipes": "short +Three epochs."}.items():  # fmt: skip
        assert main(["list", what, *OWN]) == 0
        assert re.search(rf"^{line}", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.usefixtures("_lab")
def test_processes_that_train_together_find_ones_own_functions():
    done = pgt_process(
        "train", "experiment=mine/small", "method=focal", "recipe.local_batch=32", "trainer.devices=2", *OWN
    )
    assert (done.returncode, done.stderr) == (0, "")
    [(_, summary)] = find(Path("runs"))
    assert (summary.status, summary.world_size) == ("finished", 2)
