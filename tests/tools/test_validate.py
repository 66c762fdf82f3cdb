import argparse
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgt.cli.main import main
from pgt.data.tree import COUNTS
from pgt.models import build
from pgt.reproduction import published
from pgt.runs import folder as runs
from pgt.tools import networks, validate, weights
from tests.conftest import ROOT, TINY, train
from tests.data.test_cifar import archive

AUTHORS = {"model": "resnet18_wobn", "modify_softmax": 0.25, "lr": 0.1, "warmup_lr": 0.01, "batch_size": 64,
           "world_size": 4, "sched": "cosine", "smoothing": 0.0, "clip_grad": None, "clip_mode": "norm",
           "scale": [0.08, 1.0], "experiment": "cosine-scheduler-alpha-0.25"}  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    """A data set of ten classes, with two small images each in either split."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in range(10):
            (tmp_path / "images" / split / str(name)).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / str(name) / f"{i}.png")
    return tmp_path / "images"


def numbers(text):
    """Return label -> numbers of a printed table of measures."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    return {row[0]: [float(cell) for cell in row[1:]] for row in rows[1:] if row[0] in validate.MEASURES.values()}


def authors_checkpoint(path, model, **changes):
    content = {
        "epoch": 99,
        "arch": "resnet18_wobn",
        "state_dict": OrderedDict((f"module.{key}", value) for key, value in model.state_dict().items()),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "version": 2,
        "args": argparse.Namespace(**AUTHORS),
        "amp_scaler": {"scale": 65536.0},
        "metric": np.float64(67.796),
        **changes,
    }
    torch.save(content, path)
    return path


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_run_measures_as_it_recorded(trained, which, capsys):
    run, summary = trained("model=resnet18"), None
    assert main(["validate", str(run), "--weights", which]) == 0
    text, summary = capsys.readouterr().out, runs.read_summary(run)
    found = numbers(text)
    assert all(measured == recorded for measured, recorded in found.values())
    assert set(found) == set(validate.MEASURES.values())
    assert "16 images of synthetic, fp32, α = 0.25" in text
    top1 = summary.test_top1_best if which == "best" else summary.test_top1_final
    assert found["top-1 %"][0] == pytest.approx(top1, abs=1e-4)
    if which == "last":
        assert found["loss at α·z"][0] == pytest.approx(summary.test_loss_alpha, abs=1e-4)
    assert main(["validate", str(run / "checkpoints" / f"{which}.pt")]) == 0
    assert numbers(capsys.readouterr().out) == found


def test_an_export_measures_as_its_run_and_a_calibrated_one_as_at_alpha_z(trained, folders, capsys):
    run, on = trained("model=resnet18"), ["--data-name", "imagefolder", "--data", str(folders), "--image-size", "32"]
    main(["export", str(run), "--output", "plain"])
    main(["export", str(run), "--output", "calibrated", "--calibrate"])
    found = []
    for checkpoint in (str(run), "plain", "plain/model.safetensors", "calibrated"):
        capsys.readouterr()
        options = [*on, "--batch", "7", "--workers", "0"]
        assert main(["validate", checkpoint, *options]) == 0, capsys.readouterr().err
        text = capsys.readouterr().out
        assert f"20 images of imagefolder {folders}, bilinear, torchvision, fp32" in text
        found.append({label: values[0] for label, values in numbers(text).items()})
    original, plain, file, calibrated = found
    assert original == plain == file
    assert calibrated["loss at z"] == calibrated["loss at α·z"] == pytest.approx(original["loss at α·z"], abs=2e-4)
    assert calibrated["top-1 %"] == original["top-1 %"]
    assert original["loss at z"] != pytest.approx(original["loss at α·z"], abs=1e-2)


@pytest.mark.slow
def test_an_authors_checkpoint_is_evaluated_and_says_how_it_was_trained(folders, capsys):
    checkpoint = authors_checkpoint(Path("model_best.pth.tar"), build("resnet18_nobn", 10))
    log = ["epoch,train_loss,eval_loss,eval_top1,eval_top5"]
    log += ["0,6.1,6,10.5,30", "1,5,5,67.796,88", "epoch,train_loss,eval_loss,eval_top1,eval_top5", "2,4,4,67.5,88"]
    Path("summary.csv").write_text("\n".join(log) + "\n")
    assert main(["validate", str(checkpoint), "--data", str(folders), "--image-size", "32"]) == 0
    text = capsys.readouterr().out
    assert "model_best.pth.tar: resnet18_nobn, 10 classes" in text
    assert "trained with model=resnet18_wobn modify_softmax=0.25 sched=cosine lr=0.1 warmup_lr=0.01" in text
    assert "scale=[0.08, 1.0]" in text
    assert "summary.csv: test top-1 67.796 in epoch 1 (best), 67.5 in epoch 2 (last)" in text
    assert "20 images of" in text
    assert "α = 0.25" in text


def test_how_a_checkpoint_was_trained_is_printed_even_if_the_data_are_missing(capsys):
    checkpoint = authors_checkpoint(Path("model_best.pth.tar"), build("resnet18_nobn", 10))
    assert main(["validate", str(checkpoint)]) == 2
    captured = capsys.readouterr()
    assert "lr=0.1" in captured.out
    assert captured.err == "pgt: where is the data set imagefolder? Name its folder by --data ROOT\n"


def test_an_authors_checkpoint_knows_its_row_of_the_paper():
    source = weights.read(authors_checkpoint(Path("a.pth.tar"), build("resnet18_nobn", 10)))
    text = validate.comparison("resnet18_nobn", source.known, 67.9)
    rows = [line for line in text.splitlines() if line.startswith("| Table")]
    [row] = rows
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["Table 2, row 8", "cosine", "256"]
    assert cells[6:9] == ["67.814", "67.796", "+0.086"]
    assert published.NOTES[3].text in text


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({"modify_softmax": 0.0}, {"alpha": 1.0, "method": "baseline"}),
        ({"clip_grad": 0.1, "clip_mode": "agc"}, {"alpha": 0.25, "method": "agc+pgt"}),
        ({"clip_grad": 1.0, "modify_softmax": 0}, {"alpha": 1.0, "method": "gc"}),
    ],
)
def test_the_authors_arguments_are_read_as_the_papers_rows(changes, known):
    arguments = argparse.Namespace(**{**AUTHORS, **changes})
    source = weights.read(authors_checkpoint(Path("a.pth.tar"), build("resnet18_nobn", 10), args=arguments))
    assert {key: source.known[key] for key in known} == known
    assert len([row for row in published.all_rows() if row.model == "resnet18_nobn"
                and all(getattr(row, key) == value for key, value in source.known.items())]) == 1  # fmt: skip


def test_unknown_values_match_every_row_of_the_network():
    rows = [line for line in validate.comparison("resnet50", {}, 76.0).splitlines() if line.startswith("| Table")]
    assert len(rows) == 12
    alone = validate.comparison("resnet50", {"alpha": 0.3, "schedule": "cosine"}, 76.0)
    assert alone.count("| Table") == 2
    assert validate.comparison("resnet20", {}, 90.0) == "the paper has no row of resnet20"


def test_imagenet_is_all_of_imagenet_and_is_set_beside_the_paper(folders, capsys, monkeypatch):
    checkpoint = authors_checkpoint(Path("a.pth.tar"), build("resnet18_nobn", 10))
    command = ["validate", str(checkpoint), "--data", str(folders), "--data-name", "imagenet", "--image-size", "32"]
    assert main(command) == 2
    assert "is not imagenet" in capsys.readouterr().err
    monkeypatch.setitem(COUNTS, "imagenet", (10, 20, 20))
    assert main(command) == 0
    text = capsys.readouterr().out
    measured = numbers(text)["top-1 %"][0]
    assert f"{measured - 67.814:+.3f}" in text


class Trap:
    """An object that creates a file if it is unpickled."""

    def __reduce__(self):
        return open, ("sprung", "w")


@pytest.mark.parametrize("kind", ["state", "argument", "legacy", "pickle"])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(kind, folders, capsys):
    path = Path("trap.pth.tar")
    content = {"state_dict": {"fc.weight": torch.zeros(10, 2)}, "args": argparse.Namespace(trap=Trap())}
    if kind == "state":
        content = {"state_dict": {"fc.weight": Trap()}}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    assert main(["validate", str(path), "--data", str(folders)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    if kind != "pickle":
        assert "trap.pth.tar is not loaded: it holds" in error
        assert "open" in error
    assert not Path("sprung").exists()


def test_reading_a_checkpoint_leaves_torchs_safe_globals_as_they_were():
    before = set(torch.serialization.get_safe_globals())
    weights.read(authors_checkpoint(Path("a.pth.tar"), build("resnet18_nobn", 10)))
    assert argparse.Namespace not in before
    assert set(torch.serialization.get_safe_globals()) == before


def refusals(run, folders):
    on = ["--data", str(folders)]
    resnet18 = build("resnet18", 10).state_dict()
    torch.save(resnet18, "resnet18.pth")
    torch.save({key: value for key, value in resnet18.items() if key != "layer1.0.conv1.weight"}, "part.pth")
    torch.save(build("resnet18", 5).state_dict(), "five.pth")
    torch.save({"epoch": 3}, "empty.pth")
    torch.save([1, 2], "list.pth")
    torch.save({"weight": torch.zeros(2)}, "foreign.pth")
    whole = Path("resnet18.pth").read_bytes()
    Path("cut.pth").write_bytes(whole[: len(whole) // 2])
    Path("nothing.pth").write_bytes(b"")
    Path("text.safetensors").write_text("none")
    Path("folder").mkdir()
    shutil.copytree(run, "damaged")
    Path("damaged/config.yaml").write_text("{")
    shutil.copytree(run, "foreign")
    Path("foreign/config.yaml").write_text("a: 1\n")
    yield ["nowhere", *on], "no file or folder nowhere"
    yield ["folder", *on], "neither a run folder"
    yield ["cut.pth", *on], "cannot load cut.pth"
    yield ["nothing.pth", *on], "cannot load nothing.pth"
    yield ["text.safetensors", *on], "cannot load text.safetensors"
    yield ["damaged", *on], "cannot read damaged/config.yaml"
    yield ["foreign", *on], "is no config of a run"
    yield ["empty.pth", *on], "holds no weights"
    yield ["list.pth", *on], "holds no weights but a list"
    yield ["foreign.pth", *on], "holds no classifier fc.weight"
    yield ["part.pth", *on], "does not fit resnet18 (layer1.0.conv1.weight is missing)"
    yield ["resnet18.pth", *on, "--model", "resnet50"], "it fits resnet18"
    yield ["resnet18.pth", *on, "--model", "resnet81"], "no model is called resnet81: did you mean resnet18?"
    yield ["five.pth", *on], "has 5 classes, the data set imagefolder 10"
    yield ["resnet18.pth"], "Name its folder by --data ROOT"
    yield ["resnet18.pth", "--data", "nowhere"], "no folder nowhere/train"
    yield ["resnet18.pth", "--data-name", "imagenets"], "no data set is called imagenets"
    yield ["resnet18.pth", *on, "--data-name", "digits"], "data set digits has no root: leave --data out"
    yield ["resnet18.pth", *on, "--alpha", "1.5"], "--alpha must lie between 0 and 1, got 1.5"
    yield ["resnet18.pth", *on, "--weights", "last"], "is no run folder: leave --weights out"


def test_what_cannot_be_validated_gets_one_line(trained, folders, capsys):
    for arguments, complaint in refusals(trained("model=resnet20"), folders):
        assert main(["validate", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "module._orig_mod.", "model.", "model._orig_mod."])
def test_prefixes_of_wrappers_are_stripped_in_any_order(prefix):
    state = build("resnet20", 10).state_dict()
    torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, "wrapped.pth")
    found = weights.read(Path("wrapped.pth")).state
    assert list(found) == list(state)
    assert networks.fit(Path("wrapped.pth"), found, None)[0] == "resnet20"


def test_counters_of_batch_norm_may_be_missing():
    state = {key: value for key, value in build("resnet18", 10).state_dict().items() if "num_batches" not in key}
    name, model = networks.fit(Path("old.pth"), state, None)
    assert name == "resnet18"
    assert torch.equal(model.fc.weight, state["fc.weight"])


def test_every_network_has_the_evaluation_of_its_config():
    for path in {*(ROOT / "conf" / "model").glob("*.yaml")} - {ROOT / "conf/model/timm.yaml"}:  # it has none
        chosen = validate.chosen_data({}, path.stem, root="x", workers=3)
        assert chosen["interpolation"] in path.read_text()
        assert (chosen["image_size"], chosen["workers"], chosen["backend"]) == (224, 3, "torchvision")


def test_an_exported_cifar_run_validates_on_its_archive(tmp_path, monkeypatch, capsys):
    (tmp_path / "cifar").mkdir()
    archive(tmp_path / "cifar", "cifar10", monkeypatch, packed=False)
    small = [override for override in TINY if not override.startswith("data")]
    summary = train(*small, "data=cifar10", "data.root=cifar", "model=resnet20", "recipe.lr_peak=0.01")
    assert main(["export", f"runs/custom/{summary.run_id}", "--output", "out"]) == 0
    capsys.readouterr()
    assert main(["validate", "out", "--data", "cifar"]) == 0
    assert f"{summary.test_top1_best:.4f}" in capsys.readouterr().out
    assert main(["validate", "out", "--data", "cifar", "--image-size", "64"]) == 2
    assert "data set cifar10 has no image_size" in capsys.readouterr().err
