"""The benchmarks in scripts/bench/."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from pgt.tools.probe import Case
from scripts.bench import loader, loss, methods, step
from scripts.bench.results import each_that_fits
from tests.conftest import ROOT

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
        case = {"network": "resnet20", "batch": 4, "size": 32, "precision": "fp32", "compiled": False}
        assert line["case"] == case | {"stem": "standard"}
        assert line["images_per_second"] > 0


def test_methods(monkeypatch):
    monkeypatch.setattr(methods, "cases", lambda: [Case("resnet20", 8, 8, "bf16")])
    lines = written(methods.main, "--rounds", "2", "--steps", "1")
    assert [line["loop"] for line in lines] == list(methods.METHODS)
    assert all(line["images_per_second"] > 0 for line in lines)
    kept = {line["loop"]: line["mebibytes"] for line in lines}
    assert kept["pgt"] == pytest.approx(kept["baseline"], rel=0.01)
    assert kept["gcode"] > 1.2 * kept["baseline"]  # its branches keep activations of their own


def test_losses(monkeypatch):
    monkeypatch.setattr(loss, "cases", lambda: [loss.Case(8, 10, torch.float32, torch.device("cpu"))])
    lines = written(loss.main, "--rounds", "3")
    assert [line["loop"] for line in lines] == list(loss.LOSSES)
    for line in lines:
        assert line.keys() == KEYS | {"milliseconds"}
        assert line["case"] == {"samples": 8, "classes": 10, "precision": "float32"}
        assert line["milliseconds"] > 0


def bench(name, *arguments):
    command = [sys.executable, "-m", f"scripts.bench.{name}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


@pytest.mark.slow
def test_the_benchmark_of_the_loss_prints_a_table():
    done = bench("loss", "--rounds", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "[256, 1000] float32 on CPU" in done.stdout
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows[2:] == ["cross_entropy", "pgt", "pgt, surrogate", "authors' hook"]


@pytest.mark.slow
def test_the_benchmark_of_the_step_prints_a_table(monkeypatch, capsys):
    assert {case.network for case in step.cases()} == {"resnet18", "resnet50"}
    monkeypatch.setattr(step, "cases", lambda: [Case(name, 2, 32, "fp32") for name in ("resnet18", "resnet50")])
    step.main(["--rounds", "2", "--steps", "1"])
    out = capsys.readouterr().out
    assert out.startswith("resnet18, 2 x 32 x 32, fp32; 2 rounds of 1 steps in turns")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line[:1] == "|"]
    loops = ["bare loop", "pgt, baseline", "pgt, norms each step", "pgt, PGT α = 0.25", "timm"]
    for rows in (cells[:7], cells[7:]):  # ResNet-18 and ResNet-50
        assert rows[0] == ["loop", "ms a step", "images/s", "× bare loop", "× pgt, baseline"]
        assert [row[0] for row in rows[2:]] == loops
        assert all(float(figure.replace(",", "")) > 0 for row in rows[2:] for figure in row[1:])
        assert rows[2][3] == rows[3][4] == "1.000"
    assert out.count("Norms: ") == 2


def test_a_method_that_does_not_fit_costs_only_its_case(monkeypatch, capsys):
    def build(case, method):
        if case.network == "large":
            raise torch.OutOfMemoryError("too large")
        return real(case, method)

    real = methods.build
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "this GPU")
    monkeypatch.setattr(methods, "build", build)
    monkeypatch.setattr(methods, "METHODS", ("baseline", "pgt"))
    monkeypatch.setattr(methods, "cases", lambda: [Case("large", 8, 8, "bf16"), Case("resnet20", 8, 8, "bf16")])
    lines = written(methods.main, "--rounds", "2", "--steps", "1")
    assert [line["case"]["network"] for line in lines] == ["resnet20"] * 2
    assert "large" in capsys.readouterr().out


def test_the_hooks_memory_counts_though_no_graph_holds_it():
    z, y = torch.randn(64, 100), torch.randint(0, 100, (64,))
    hook, plain = (loss._kept(loss.LOSSES[name], z, y) for name in ("authors' hook", "cross_entropy"))
    assert hook - plain == 64 * 100 * 4  # q


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_what_a_loader_has_read_ahead_is_not_timed(monkeypatch, workers):
    taken, at_clock = itertools.count(), []
    clock = time.perf_counter
    monkeypatch.setattr(loader, "SETTLE", 0)
    monkeypatch.setattr(time, "perf_counter", lambda: at_clock.append(next(taken)) or clock())
    loader._timed(taken, 5, loader.Setting(Path(), 64, workers))
    ready = workers * DataLoader([0], num_workers=1).prefetch_factor
    assert at_clock[0] >= ready
    assert at_clock[1] - at_clock[0] == 5 + 1


@pytest.mark.slow
def test_the_benchmark_of_the_loaders_prints_a_table(capsys):
    lines = written(loader.main, "--batch", "4", "--batches", "1", "--rounds", "1", "--workers", "1")
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    names = ["torchvision, Pillow", "timm create_loader", "pgt, torchvision decode_jpeg", "pgt, DALI on the CPU"]
    assert [row[1].strip() for row in rows] == [line["loop"] for line in lines] == names
    assert all(float(row[2]) > 0 for row in rows)
    for line in lines:
        assert line.keys() == KEYS | {"images_per_second", "host_milliseconds"}
        assert line["benchmark"] == "loader"
        assert line["case"] == {"batch": 4, "workers": 1, "size": 224}
        assert line["images_per_second"] > 0
        assert line["host_milliseconds"] > 0


def test_a_benchmark_goes_on_past_a_case_that_does_not_fit(monkeypatch):
    def measured(case):
        if case == "large":
            raise torch.OutOfMemoryError
        return f"{case}: measured"

    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "this GPU")
    told = each_that_fits(["small", "large", "other"], measured)
    assert told.split("\n\n") == ["small: measured", "large: more memory than this GPU has", "other: measured"]
