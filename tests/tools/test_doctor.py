"""`pgt doctor`: all checks on this machine, and each check with something broken."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pgt.cli.main import main as cli
from pgt.core.errors import InputError
from pgt.core.machine import has_dali
from pgt.runs import folder as runs
from pgt.tools import doctor, doctor_numerics, doctor_speed
from pgt.tools.finding import BAD, NOTE, OK, Finding, made
from pgt.tools.jpegs import generate
from tests.conftest import pgt


def levels(findings):
    return [finding.level for finding in findings]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sound_machine(tmp_path):
    for split in ("train", "val"):
        generate(tmp_path / "set" / split, 3)
    done = pgt("doctor", "--data", "set", "--runs", "somewhere/runs", "--resume", "--json", timeout=580)
    said = json.loads(done.stdout)
    assert (done.returncode, done.stderr, said["bad"]) == (0, "", 0), done.stdout
    found = said["findings"]
    assert list(dict.fromkeys(line["check"] for line in found)) == list(doctor.checks(Path("set"), tmp_path, True))
    assert len(found) < 24
    said = {line["check"]: (line["level"], line["text"]) for line in reversed(found)}
    assert said["gradient"][0] == said["training"][0] == said["data"][0] == said["runs"][0] == "ok"
    assert "2 classes, 3 training and 3 validation" in said["data"][1]
    assert said["resume"][0] == "ok"
    assert re.search("resnet18 trains on|resnet50 trains on", said["speed"][1])
    assert os.listdir() == ["set"]


def test_a_check_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    def fails():
        yield Finding(OK, "so far [so good]")
        raise InputError("no such thing: make one")

    checks = {"first": fails, "second": lambda: iter([Finding(NOTE, "hm"), Finding(BAD, "x" * 200)])}
    monkeypatch.setattr(doctor, "checks", lambda *_: checks)
    assert cli(["doctor"]) == 2
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [
        "ok   first     so far [so good]",
        "bad  first     no such thing: make one",
        "note second    hm",
        f"bad  second    {'x' * 200}",
    ]
    assert last.startswith("2 of 4 findings are bad")
    assert cli(["doctor", "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["bad"] == 2
    assert said["findings"][1] == {"check": "first", "level": "bad", "text": "no such thing: make one"}


def test_one_cause_is_told_once(monkeypatch, capsys):
    same = Finding(BAD, "no driver: install one")
    monkeypatch.setattr(doctor, "checks", lambda *_: {name: lambda: iter([same]) for name in "abc"})
    assert cli(["doctor"]) == 2
    line, last = capsys.readouterr().out.splitlines()
    assert (line, last[:23]) == (f"bad  a         {same.text}", "1 of 1 findings are bad")


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


def test_the_doctor_refuses_to_be_one_of_several_processes(monkeypatch, capsys):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert cli(["doctor"]) == 2
    assert "not by torchrun" in capsys.readouterr().err


def test_a_wrong_gradient_is_found(monkeypatch):
    monkeypatch.setattr(doctor_numerics, "power_grad_cross_entropy", lambda z, y, alpha: F.cross_entropy(z, y))
    assert next(doctor_numerics.gradients()).level == BAD


def test_devices_that_are_right_share_a_line(monkeypatch):
    errors = {"cuda:1": 1.0}
    monkeypatch.setattr(doctor_numerics, "visible_gpus", lambda: 3)
    monkeypatch.setattr(doctor_numerics, "gradient_error", lambda device, dtype: errors.get(str(device), 1e-6))
    bad, ok = doctor_numerics.gradients()
    assert (bad.level, bad.text.partition(": ")[0]) == (BAD, "cuda:1")
    assert (ok.level, ok.text.partition(": ")[0]) == (OK, "cpu, cuda:0, cuda:2")


@pytest.mark.parametrize(("shift", "level"), [(0.0, OK), (1e-4, BAD)])
def test_a_run_that_ends_elsewhere_after_it_was_resumed_is_bad(monkeypatch, shift, level):
    def trained(root, *overrides, epochs, killed=False):
        return {"w": torch.full((1,), 1.0 + killed * shift)}, 1.0

    monkeypatch.setattr(doctor_numerics, "trained", trained)
    assert levels(doctor_numerics.resuming()) == [level]


@pytest.mark.slow
def test_a_killed_training_that_begins_anew_is_found(tmp_path, monkeypatch):
    """As on a disk that loses what was written."""
    kill = doctor_numerics.kill_after_checkpoint

    def loses(command, folder, environment):
        first = kill(command, folder, environment)
        for path in folder.rglob("checkpoints/*.pt"):
            path.unlink()
        return first

    words = ("recipe.global_batch=32", "trainer.devices=1")
    _, loss = doctor_numerics.trained(tmp_path, *words, epochs=6, killed=True)
    assert loss > 0
    monkeypatch.setattr(doctor_numerics, "kill_after_checkpoint", loses)
    with pytest.raises(InputError, match="began anew"):
        doctor_numerics.trained(tmp_path, *words, epochs=6, killed=True)


@pytest.mark.parametrize(
    ("read", "workers", "dali", "level", "said"),
    [
        (1500.0, 8, True, OK, "keeps up"),
        (915.0, 4, True, NOTE, r"feeds 61% of this GPU .*raise data.workers \(up to 8\)"),
        (915.0, 8, False, NOTE, "61% .*install NVIDIA DALI"),
        (915.0, 8, True, NOTE, "61% .*has 8 CPUs"),
    ],
)
def test_a_loader_that_is_slower_than_the_network_is_worth_knowing(monkeypatch, read, workers, dali, level, said):
    monkeypatch.setattr(doctor_speed, "has_dali", lambda: dali)
    finding = doctor_speed.compared(read, 1500.0, "resnet50", torch.device("cuda"), workers, 8)
    assert finding.level == level
    assert re.search(said, finding.text)


def test_speed_is_checked_on_a_named_data_set_only(tmp_path, monkeypatch):
    monkeypatch.delenv("IMAGENET", raising=False)
    Path("train").mkdir()
    assert "speed" not in doctor.checks(None, tmp_path)
    assert "speed" in doctor.checks(tmp_path, tmp_path)
    monkeypatch.setenv("IMAGENET", str(tmp_path))
    assert "speed" in doctor.checks(None, tmp_path)


@pytest.mark.slow
def test_the_speed_of_the_loader_is_measured_on_the_users_files(tmp_path, monkeypatch):
    for split in ("train", "val"):
        generate(tmp_path / split, 2)
    monkeypatch.setattr(doctor_speed, "SECONDS", 0.2)
    monkeypatch.setattr(doctor_speed, "CPU_CASE", doctor_speed.Case("resnet20", 2, 32, "fp32"))
    monkeypatch.setattr(doctor_speed, "first_device", lambda: torch.device("cpu"))
    [finding] = doctor_speed.loader_and_network(tmp_path)
    assert re.search(r"[\d,]+ images/s with \d+ data workers?, resnet20 trains on [\d,]+", finding.text)


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
    weights, asked = torch.tensor([3.0, 4.0]), []

    def trained(root, *overrides, **variables):
        asked.append((*overrides, *variables))
        if overrides[-1] == "trainer.precision=bf16":
            raise InputError("no such kernels")
        moved = {"w": weights + (0.01 if overrides[-1] == "trainer.devices=4" else 0.0)}
        return moved, 2.05 if overrides[-1] == "trainer.precision=fp16" else 2.0  # as without any training

    monkeypatch.setattr(doctor_numerics, "visible_gpus", lambda: 4)
    monkeypatch.setattr(doctor_numerics, "trained", trained)
    found = list(doctor_numerics.trainings())
    batch, four = "recipe.global_batch=32", "trainer.devices=4"
    assert asked == [
        (batch, "trainer.devices=1", "CUDA_VISIBLE_DEVICES"),
        (batch, "trainer.devices=1"),
        (batch, four),
        (batch, four, "trainer.precision=bf16"),
        (batch, four, "trainer.precision=fp16"),
    ]
    assert levels(found) == [OK, BAD, BAD, BAD]
    assert "differ by 3e-03 of their norm (at most 1e-03)" in found[1].text  # 0.01·√2 of 5
    assert found[2].text == "no such kernels"
    assert "differs by 2.50%" in found[3].text


@pytest.mark.parametrize(("gpus", "batch"), [(0, 32), (1, 32), (3, 33), (8, 32), (40, 40)])
def test_the_batch_is_one_that_all_can_share(monkeypatch, gpus, batch):
    asked = []
    monkeypatch.setattr(doctor_numerics, "visible_gpus", lambda: gpus)

    def trained(root, batch, *overrides, **variables):
        asked.append(batch)
        return {"w": torch.ones(1)}, 1.0

    monkeypatch.setattr(doctor_numerics, "trained", trained)
    assert set(levels(doctor_numerics.trainings())) == {OK}
    assert set(asked) == {f"recipe.global_batch={batch}"}


@pytest.mark.slow
def test_a_training_works_in_a_folder_with_an_odd_name(tmp_path):
    place = tmp_path / "it's, k=[1]"
    place.mkdir()
    weights, loss = doctor_numerics.trained(place, "trainer.devices=1", "recipe.global_batch=449")
    assert loss > 0
    assert "fc.weight" in weights


@pytest.mark.slow
def test_a_training_that_fails_or_hangs_says_how_to_see_it(tmp_path, monkeypatch):
    (tmp_path / "pgt").mkdir()
    (tmp_path / "pgt" / "__init__.py").touch()  # not this one is meant
    shown = (
        r"^`A=1 pgt train .*recipe.global_batch=0 paths.runs=/tmp/doctor` fails: recipe.global_batch must be at least 1"
    )
    with pytest.raises(InputError, match=shown):
        doctor_numerics.trained(tmp_path, "recipe.global_batch=0", A="1")
    monkeypatch.setattr(doctor_numerics, "MINUTES", 0.001)
    monkeypatch.setattr(doctor_numerics, "visible_gpus", lambda: 2)
    with pytest.raises(InputError, match=r"devices=2 .*` has not ended within 0.001 minutes.*NCCL_DEBUG"):
        doctor_numerics.trained(tmp_path, "trainer.devices=2")


def test_the_reason_is_the_line_that_names_the_error():
    cuda = (
        "torch.AcceleratorError: CUDA error: an illegal memory access\nSearch for it\nCompile with `TORCH_USE_CUDA_DSA`"
    )
    reason = doctor_numerics.reason
    assert reason(f"Traceback:\n  x()\n{cuda}\n") == "torch.AcceleratorError: CUDA error: an illegal memory access"
    assert reason(f"pgt: rank 1 failed: {cuda}") == f"rank 1 failed: {cuda.splitlines()[0]}"
    assert (reason("Killed\n"), reason("")) == ("Killed", "")


@pytest.mark.slow
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
    assert (finding.level, "--data must hold" in finding.text) == (BAD, True)
    for split in ("train", "val"):
        generate(tmp_path / split, 2)
    assert levels(made(lambda: doctor.files(tmp_path))) == [OK, NOTE, OK]
    os.mkfifo(tmp_path / "train" / "class0" / "pipe.jpg")
    *_, finding = made(lambda: doctor.files(tmp_path))
    assert (finding.level, "pgt data verify" in finding.text) == (NOTE, True)
    (tmp_path / "train" / "class0" / "pipe.jpg").unlink()
    (tmp_path / "pgt-manifest.json").touch()
    assert levels(made(lambda: doctor.files(tmp_path))) == [OK, OK]
    monkeypatch.setenv("IMAGENET", str(tmp_path))
    [finding] = made(lambda: doctor.files(None))
    assert (finding.level, "is not imagenet" in finding.text) == (BAD, True)


def test_little_shared_memory_is_worth_knowing(monkeypatch):
    monkeypatch.setattr(doctor, "SHARED", 2**60)
    [finding] = doctor.memory()
    assert (finding.level, "--shm-size" in finding.text) == (NOTE, True)


def test_a_runs_folder_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert levels(made(lambda: doctor.room(tmp_path / "file" / "runs"))) == [BAD]
    (tmp_path / "link").symlink_to("nowhere")
    assert levels(made(lambda: doctor.room(tmp_path / "link"))) == [BAD]
    assert levels(doctor.room(tmp_path / "runs")) == [OK]
    monkeypatch.setattr(runs, "holder", lambda folder: "")
    monkeypatch.setattr(doctor, "ROOM", 2**60)
    assert levels(doctor.room(tmp_path / "runs")) == [BAD, NOTE]
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    [finding] = made(lambda: doctor.room(tmp_path))
    assert (finding.level, "knows no locks" in finding.text, "flock" in finding.text) == (BAD, True, True)
