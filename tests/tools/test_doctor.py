"""`pgt doctor`: the whole of it on this machine, and each check where something is wrong."""

import os
import re

import pytest
import torch
import torch.nn.functional as F

from pgt import cli, runs
from pgt.environment import has_dali
from pgt.errors import InputError
from pgt.tools import doctor, doctor_numerics
from pgt.tools.bench_loader import generate
from pgt.tools.finding import BAD, NOTE, OK, Finding, made
from tests.conftest import pgt

LINE = re.compile(r"(ok|note|bad) +(\w+) +(.+)")


def levels(findings):
    return [finding.level for finding in findings]


def test_a_sound_machine(tmp_path):
    for split in ("train", "val"):
        generate(tmp_path / "set" / split, 3)
    done = pgt("doctor", "--data", "set", "--runs", "somewhere/runs")
    *lines, last = done.stdout.splitlines()
    assert (done.returncode, done.stderr, last) == (0, "", "nothing stands in the way of training"), done.stdout
    found = [LINE.fullmatch(line).groups() for line in lines]
    assert list(dict.fromkeys(name for _, name, _ in found)) == list(doctor.checks(None, tmp_path))
    said = {name: (level, text) for level, name, text in reversed(found)}
    assert said["gradient"][0] == said["training"][0] == said["data"][0] == said["runs"][0] == "ok"
    assert "2 classes, 3 training and 3 validation" in said["data"][1]
    assert os.listdir() == ["set"]


def test_each_bad_finding_is_told_and_the_others_are_made(monkeypatch, capsys):
    def fails():
        yield Finding(OK, "so far [so good]")
        raise InputError("no such thing: make one")

    checks = {"first": fails, "second": lambda: iter([Finding(NOTE, "hm"), Finding(BAD, "x" * 200)])}
    monkeypatch.setattr(doctor, "checks", lambda root, runs_root: checks)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "ok   first     so far [so good]",
        "bad  first     no such thing: make one",
        "note second    hm",
        f"bad  second    {'x' * 200}",
        "2 of 4 findings are bad",
    ]


def test_whatever_a_check_raises_is_a_finding():
    def raising(error):
        def check():
            raise error
            yield

        return check

    assert list(made(raising(RuntimeError("\nlibnccl.so.2 is\nnot there")))) == [
        Finding(BAD, "RuntimeError: libnccl.so.2 is")
    ]
    assert list(made(raising(PermissionError(13, "Permission denied", "runs")))) == [
        Finding(BAD, "runs: Permission denied")
    ]
    assert list(made(raising(AssertionError()))) == [Finding(BAD, "AssertionError: no reason given")]


def test_it_is_not_one_of_several_processes(monkeypatch, capsys):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert cli.main(["doctor"]) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_a_wrong_gradient_is_found(monkeypatch):
    monkeypatch.setattr(doctor_numerics, "power_grad_cross_entropy", lambda z, y, alpha: F.cross_entropy(z, y))
    assert next(doctor_numerics.gradients()).level == BAD


def test_a_compiler_that_is_not_there_is_worth_knowing(monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("InvalidCxxCompiler:\n no working C++ compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    [finding] = doctor_numerics.compilation()
    assert finding.level == NOTE
    assert "trainer.compile=false (InvalidCxxCompiler: no working" in finding.text
    monkeypatch.setattr(torch, "compile", lambda function: lambda z: 2 * function(z))
    assert levels(doctor_numerics.compilation()) == [BAD]


def test_trainings_are_compared_in_every_way_that_there_is(monkeypatch):
    weights, asked = {"w": torch.tensor([3.0, 4.0])}, []

    def trained(folder, most, count, environment=None, *overrides):
        asked.append((most, count, environment, *overrides))
        moved = {"w": weights["w"] + (0.1 if count == 4 and not overrides else 0.0)}
        return moved, 3.0 if overrides == ("trainer.precision=fp16",) else 2.0

    monkeypatch.setattr(doctor_numerics, "visible_gpus", lambda: 4)
    monkeypatch.setattr(doctor_numerics, "trained", trained)
    found = list(doctor_numerics.trainings())
    assert asked == [
        (4, 1, {"CUDA_VISIBLE_DEVICES": ""}),
        (4, 1, None),
        (4, 4, None),
        (4, 4, {}, "trainer.precision=bf16"),
        (4, 4, {}, "trainer.precision=fp16"),
    ]
    assert levels(found) == [OK, BAD, OK, BAD]
    assert "differ by 3e-02 of their norm" in found[1].text  # 0.1·√2 of 5
    assert "differs by 50.0%" in found[3].text


def test_a_training_that_fails_or_hangs_says_how_to_see_it(tmp_path, monkeypatch):
    (tmp_path / "pgt").mkdir()
    (tmp_path / "pgt" / "__init__.py").touch()  # not this one is meant
    with pytest.raises(InputError, match=r"^`A=1 pgt train .*recipe.epochs=0` fails: recipe.epochs must be at least 1"):
        doctor_numerics.trained(tmp_path, 2, 1, {"A": "1"}, "recipe.epochs=0")
    monkeypatch.setattr(doctor_numerics, "MINUTES", 0.001)
    with pytest.raises(InputError, match=r"devices=2` has not ended within 0.001 minutes.*NCCL_DEBUG"):
        doctor_numerics.trained(tmp_path, 2, 2)


@pytest.mark.skipif(not has_dali(), reason="needs NVIDIA DALI")
def test_pixels_that_differ_are_found(monkeypatch):
    monkeypatch.setattr(doctor, "PIXELS", 0.0)
    assert BAD in levels(doctor.images())


def test_without_dali_torchvision_decodes(monkeypatch):
    monkeypatch.setattr(doctor, "has_dali", lambda: False)
    assert levels(doctor.images()) == [NOTE]


def test_a_data_set_that_is_not_there_or_not_whole(tmp_path, monkeypatch):
    monkeypatch.delenv("IMAGENET", raising=False)
    assert levels(made(lambda: doctor.files(None))) == [NOTE]
    [finding] = made(lambda: doctor.files(tmp_path / "nowhere"))
    assert (finding.level, "data.root must hold" in finding.text) == (BAD, True)
    for split in ("train", "val"):
        generate(tmp_path / split, 2)
    assert levels(made(lambda: doctor.files(tmp_path))) == [OK, OK]
    monkeypatch.setenv("IMAGENET", str(tmp_path))
    [finding] = made(lambda: doctor.files(None))
    assert (finding.level, "is not ImageNet-1K" in finding.text) == (BAD, True)


def test_little_shared_memory_is_worth_knowing(monkeypatch):
    monkeypatch.setattr(doctor, "SHARED", 2**60)
    [finding] = doctor.memory()
    assert (finding.level, "--shm-size" in finding.text) == (NOTE, True)


def test_a_runs_folder_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert levels(made(lambda: doctor.room(tmp_path / "file" / "runs"))) == [BAD]
    assert levels(doctor.room(tmp_path / "runs")) == [OK]
    monkeypatch.setattr(runs, "holder", lambda folder: "")
    monkeypatch.setattr(doctor, "ROOM", 2**60)
    assert levels(doctor.room(tmp_path / "runs")) == [BAD, NOTE]
    assert os.listdir(tmp_path) == ["file"]
