import json
import shutil
import stat
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torchvision.transforms import InterpolationMode

from pgt.cli.main import main
from pgt.core.errors import InputError
from pgt.data.delivery import DEVIATION, MEAN
from pgt.data.folder import evaluation_pixels
from pgt.data.reader import central_view
from pgt.models import build
from pgt.runs import folder as runs
from pgt.tools import export, networks
from pgt.tools.validate import chosen_data
from pgt.tools.weights import read
from tests.conftest import compose

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
ALPHA = 0.25  # of method=pgt


def ours(run, name, weights="best", stem="standard"):
    model = build(name, 10, stem)
    model.load_state_dict(torch.load(run / "checkpoints" / f"{weights}.pt", weights_only=True)["model"])
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(IMAGES)


@pytest.mark.parametrize("weights", ["best", "last"])
@pytest.mark.parametrize("name", ["resnet18", pytest.param("seresnet18", marks=pytest.mark.slow)])
def test_timm_loads_an_export_and_gives_the_same_logits_bit_for_bit(trained, name, weights):
    run = trained(f"model={name}")
    assert main(["export", str(run), "--weights", weights, "--output", "out"]) == 0
    loaded = timm.create_model("local-dir:out", pretrained=True)
    assert torch.equal(logits(loaded), logits(ours(run, name, weights)))


def test_best_and_last_are_different_weights_with_their_own_numbers(trained):
    run = trained("model=resnet18")
    for weights in ("best", "last"):
        main(["export", str(run), "--weights", weights, "--output", weights])
    best, last = (ModelCard.load(f"{weights}/README.md").data.eval_results for weights in ("best", "last"))
    summary = runs.read_summary(run)
    assert best[0].metric_value == pytest.approx(summary.test_top1_best)
    assert [last[0].metric_value, last[1].metric_value] == [
        pytest.approx(summary.test_top1_final),
        pytest.approx(summary.test_top5_final),
    ]
    assert "the best by top-1 on the test set, so chosen on it" in Path("best/README.md").read_text()


def test_without_norm_timm_loads_it_as_the_card_says_and_not_otherwise(trained):
    run = trained("model=resnet18_nobn")
    assert main(["export", str(run), "--output", "out"]) == 0
    assert "pretrained=True, norm_layer=torch.nn.Identity)" in Path("out/README.md").read_text()
    loaded = timm.create_model("local-dir:out", pretrained=True, norm_layer=torch.nn.Identity)
    assert torch.equal(logits(loaded), logits(ours(run, "resnet18_nobn")))
    with pytest.raises(RuntimeError, match="Missing key"):
        timm.create_model("local-dir:out", pretrained=True)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=resnet20"],
        pytest.param(["model=resnet18", "model.stem=small"], marks=pytest.mark.slow),
        pytest.param(["model=vgg19_bn"], marks=pytest.mark.slow),
    ],
)
def test_our_own_network_comes_back_by_the_code_of_its_card(trained, overrides, capsys):
    run = trained(*overrides)
    assert main(["export", str(run), "--output", "out"]) == 0
    card = Path("out/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("PATH", "out")
    scope = {}
    exec(code, scope)
    name, stem = overrides[0].removeprefix("model="), "small" if overrides[1:] else "standard"
    assert torch.equal(logits(scope["model"]), logits(ours(run, name, stem=stem)))
    assert ModelCard.load("out/README.md").data.library_name is None
    assert json.loads(Path("out/config.json").read_text())["pretrained_cfg"]["first_conv"] in dict(
        scope["model"].named_modules()
    )
    capsys.readouterr()
    assert main(["validate", "out", "--data-name", "synthetic"]) == 0
    assert f"{name}, 10 classes" in capsys.readouterr().out


def test_calibrated_softmax_is_the_softmax_of_alpha_z(trained):
    run = trained("model=resnet18")
    assert main(["export", str(run), "--calibrate", "--output", "out"]) == 0
    z, exported = logits(ours(run, "resnet18")), logits(timm.create_model("local-dir:out", pretrained=True))
    torch.testing.assert_close(exported.softmax(1), (ALPHA * z).softmax(1), rtol=1e-5, atol=1e-7)
    assert torch.equal(exported.argmax(1), z.argmax(1))
    assert (exported.softmax(1) - z.softmax(1)).abs().max() > 1e-3
    card = Path("out/README.md").read_text()
    assert "multiplied by α = 0.25" in card
    record = runs.read_epochs(run, runs.read_summary(run).epochs)[-1]
    assert f"{record['test_loss']:.4f}" not in card


def test_alpha_0_cannot_be_calibrated(trained, capsys):
    run = trained("model=resnet20", "method.alpha=0")
    assert main(["export", str(run), "--calibrate", "--output", "out"]) == 2
    assert "uniform" in capsys.readouterr().err
    assert not Path("out").exists()
    assert main(["export", str(run), "--output", "out"]) == 0
    assert "softmax(α·z) is uniform" in Path("out/README.md").read_text()


def test_the_card_names_what_was_measured_and_no_imagenet(trained):
    run = trained("model=resnet18")
    main(["export", str(run), "--output", "out"])
    card, summary = ModelCard.load("out/README.md"), runs.read_summary(run)
    assert (card.data.license, card.data.library_name, card.data.datasets) == ("apache-2.0", "timm", None)
    result = card.data.eval_results[0]
    assert (result.dataset_name, result.dataset_type) == ("random tensors", "synthetic")
    assert result.metric_args == {"n": 1, "seed": 0, "epochs": 2}
    assert "softmax(α·z) with α = 0.25" in card.text
    assert "arxiv.org/abs/2111.12495" in card.text
    assert summary.run_id in card.text
    assert "lr_peak: 0.01" in card.text
    assert "momentum" not in card.text  # as in the paper's recipe
    assert [line for line in card.text.splitlines() if "ImageNet" in line] == [
        "It has never been measured on ImageNet-1K."
    ]


@pytest.mark.parametrize(("size", "interpolation"), [(224, "bicubic"), (32, "bilinear"), (33, "bilinear")])
def test_timms_transform_shows_what_our_evaluation_does(size, interpolation, tmp_path):
    config = {"data": {"name": "imagefolder", "image_size": size}, "model": {"interpolation": interpolation}}
    described = export.preprocessing(config)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    file = (tmp_path / "image.png").read_bytes()
    expected = evaluation_pixels(file, central_view(300, 411, size), size, InterpolationMode(interpolation)) / 255
    expected = (expected - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=described))
    torch.testing.assert_close(transform(Image.open(tmp_path / "image.png")), expected)


def test_digits_are_described_as_they_are_delivered():
    from pgt.data import open_set
    from pgt.data.delivery import Delivery

    config = compose("data=digits", "model=resnet20")
    described = export.preprocessing({"data": {"name": "digits"}, "model": {"interpolation": "bilinear"}})
    _, test = open_set(config.data.name).loaders(Delivery(torch.device("cpu"), torch.float32, 8, 8, 0, True))
    images = torch.cat([batch.images for batch in test.epoch(0)])
    shown = images * described["std"][0] + described["mean"][0]
    assert described["input_size"] == [3, 8, 8]
    assert (shown.min().item(), shown.max().item()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))


def test_an_export_is_replaced_whole_or_stays(trained, monkeypatch):
    run = trained("model=resnet20")
    assert main(["export", str(run)]) == 0
    folder = run / "export"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == export.FILES

    def fails(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(export.json, "dumps", fails)
        assert main(["export", str(run), "--weights", "last"]) == 2
    with monkeypatch.context() as patch:
        rename = Path.rename
        patch.setattr(Path, "rename", lambda a, b: fails() if a.name.endswith(".new") else rename(a, b))
        assert main(["export", str(run), "--weights", "last"]) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert main(["export", str(run), "--calibrate", "--output", str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["pgt"]["calibrated"]
    assert main(["export", str(run), "--calibrate"]) == 0
    assert set(path.name for path in (run / "export-calibrated").iterdir()) == export.FILES
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []
    assert stat.S_IMODE(folder.stat().st_mode) & stat.S_IRGRP
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    assert main(["export", str(run)]) == 2
    assert (folder / "README.md").read_text() == "mine"
    shutil.rmtree(folder)


def refusals(run):
    unfinished, damaged, other = Path("unfinished"), Path("damaged"), Path("other")
    for copy in (unfinished, damaged):
        shutil.copytree(run, copy)
    summary = json.loads((unfinished / "summary.json").read_text())
    (unfinished / "summary.json").write_text(json.dumps({**summary, "status": "unfinished"}))
    (damaged / "checkpoints" / "best.pt").write_bytes(b"PK\x03\x04 no checkpoint")
    other.mkdir()
    (other / "thesis.tex").write_text("")
    yield ["nowhere"], "has no config.yaml"
    yield [str(unfinished)], "is unfinished: only a finished one"
    yield [str(damaged)], "it is damaged"
    yield [str(run), "--output", str(other)], "holds other things than an export (thesis.tex)"


def test_what_cannot_be_exported_gets_one_line_and_leaves_nothing(trained, capsys):
    for arguments, complaint in refusals(trained("model=resnet20")):
        before = sorted(str(path) for path in Path().rglob("*"))
        assert main(["export", *arguments]) == 2
        captured = capsys.readouterr()
        assert complaint in captured.err
        assert (captured.err.count("\n"), captured.out) == (1, "")
        assert sorted(str(path) for path in Path().rglob("*")) == before


def test_weights_of_every_format_leave_in_float32(trained):
    run = trained("model=resnet20", "trainer.precision=fp64")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["export", str(run), "--output", "out"]) == 0
    from safetensors.torch import load_file

    kinds = {value.dtype for value in load_file("out/model.safetensors").values()}
    assert kinds == {torch.float32, torch.int64}


@pytest.mark.parametrize("method", ["authors_hook", "authors_hook_fp16"])
def test_what_the_hook_trained_is_not_called_calibrated(trained, capsys, method):
    run = trained("model=resnet20", f"method={method}", "recipe.lr_peak=1e-6", "recipe.lr_start=1e-6")
    assert main(["export", str(run), "--output", "hook"]) == 0
    card = Path("hook/README.md").read_text()
    assert "Neither softmax(z) nor softmax(α·z)" in card
    assert f"the PowerGrad Transform as published{', in fp16' if method.endswith('fp16') else ''} (`{method}`" in card
    assert main(["export", str(run), "--output", "calibrated", "--calibrate"]) == 2
    assert "no --calibrate" in capsys.readouterr().err
    assert not Path("calibrated").exists()


def test_a_network_of_timm_is_exported_calibrated_and_validated_by_its_own_classifier(trained, capsys):
    run = trained("model.name=timm/test_convnext")
    assert main(["export", str(run), "--output", "plain"]) == 0
    assert main(["export", str(run), "--output", "calibrated", "--calibrate"]) == 0
    plain, calibrated = (timm.create_model(f"local-dir:{name}", pretrained=True) for name in ("plain", "calibrated"))
    assert torch.equal(logits(plain), logits(ours(run, "timm/test_convnext")))
    torch.testing.assert_close(logits(calibrated), ALPHA * logits(plain))
    assert plain.pretrained_cfg["classifier"] == "head.fc"
    assert main(["validate", str(run)]) == 0
    assert "timm/test_convnext, 10 classes" in capsys.readouterr().out


def test_an_export_is_validated_with_the_interpolation_that_it_names(trained):
    assert main(["export", str(trained("model=resnet18")), "--output", "plain"]) == 0
    path = Path("plain/config.json")
    config = json.loads(path.read_text())
    config["pgt"]["data"], config["pretrained_cfg"]["interpolation"] = "imagefolder", "bicubic"
    path.write_text(json.dumps(config))
    chosen = chosen_data(read(Path("plain")).config, "resnet18", root="x")
    assert chosen["interpolation"] == "bicubic"


def test_a_loss_and_a_transform_of_ones_own_are_on_the_card_and_a_network_of_ones_own_is_not_exported(trained, capsys):
    """torch's functions stand for the user's."""
    loss, clip = "{_target_: torch.nn.CrossEntropyLoss}", "{_target_: pgt.methods.clip_grad_norm, max_norm: 1.0}"
    run = trained("model=resnet20", "method=baseline", f"method.loss={loss}", f"method.transforms=[{clip}]")
    assert main(["export", str(run), "--output", "out"]) == 0
    card = Path("out/README.md").read_text()
    assert "trained on random tensors with the loss `torch.nn.CrossEntropyLoss`" in card
    assert "pgt.methods.clip_grad_norm" in card
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("  name: resnet20\n", "  _target_: mine.Network\n"))
    for command in ("export", "validate"):
        assert main([command, str(run)]) == 2
        assert "mine.Network, a network of your own" in capsys.readouterr().err


def test_a_classifier_that_is_a_convolution_is_not_exported():
    state = {"head.fc.weight": torch.zeros(10, 5, 1, 1)}
    with pytest.raises(InputError, match=r"head\.fc is a convolution"):
        networks.fit(Path("best.pt"), state, "timm/resnetv2_50")
