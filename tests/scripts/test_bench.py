"""The benchmarks write what they measure as JSON, too."""

import json
from pathlib import Path

import pytest
import torch

from pgt.tools.probe import Case
from scripts.bench import loader, loss, step

KEYS = {"benchmark", "case", "loop", "machine"}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def written(main, *arguments):
    """Run a benchmark and read its JSON."""
    main([*arguments, "--json", "results/speed.json"])
    return json.loads(Path("results/speed.json").read_text())


def test_steps(monkeypatch):
    monkeypatch.setattr(step, "cases", lambda: [Case("resnet20", 4, 32, "fp32")])
    lines = written(step.main, "--rounds", "2", "--steps", "1")
    assert [line["loop"] for line in lines] == [
        "bare loop", "pgt, baseline", "pgt, norms each step", "pgt, PGT α = 0.25", "timm"]  # fmt: skip
    for line in lines:
        assert line.keys() == KEYS | {"images_per_second"}
        assert line["benchmark"] == "step"
        assert line["case"] == {"network": "resnet20", "batch": 4, "size": 32, "precision": "fp32", "compiled": False}
        assert line["images_per_second"] > 0


def test_losses(monkeypatch):
    monkeypatch.setattr(loss, "cases", lambda: [loss.Case(8, 10, torch.float32, torch.device("cpu"))])
    lines = written(loss.main, "--rounds", "3")
    assert [line["loop"] for line in lines] == list(loss.LOSSES)
    for line in lines:
        assert line.keys() == KEYS | {"milliseconds"}
        assert line["case"] == {"samples": 8, "classes": 10, "precision": "float32"}
        assert line["milliseconds"] > 0


def test_loaders():
    lines = written(loader.main, "--batch", "4", "--batches", "1", "--rounds", "1", "--workers", "1")
    assert [line["loop"] for line in lines][:3] == [
        "torchvision, Pillow", "timm create_loader", "pgt, torchvision decode_jpeg"]  # fmt: skip
    for line in lines:
        assert line.keys() == KEYS | {"images_per_second"}
        assert line["benchmark"] == "loader"
        assert line["case"] == {"batch": 4, "workers": 1, "size": 224}
        assert line["images_per_second"] > 0
