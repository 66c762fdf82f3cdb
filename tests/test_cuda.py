"""What only a GPU can show. Skipped without one."""

import re
import signal
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pgt import power_grad_cross_entropy
from pgt.cli.main import main as cli
from pgt.core.machine import has_dali
from pgt.data import open_set
from pgt.runs.folder import find
from pgt.tools.jpegs import generate
from pgt.training.assemble import assemble
from pgt.training.ranks import ALONE
from pgt.training.recorder import Recorder
from tests.conftest import SECONDS, TINY, compose, pgt, train
from tests.data.helpers import FOLDER, loaders
from tests.training.layouts import Kept
from tests.training.test_stopping import LONG, assert_goes_on, assert_same, begun, result, stopped_at
from tests.training.test_stopping import RUN as SHORT

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]

RUN = (*TINY, "model=resnet20", "method=agc_pgt")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_every_precision_trains(precision):
    assert train(*RUN, f"trainer.precision={precision}").status == "finished"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore:TensorFloat32 tensor cores")
@pytest.mark.parametrize("option", ["compile", "deterministic"])
def test_it_trains_compiled_and_deterministic(option):
    try:
        assert train(*RUN, f"trainer.{option}=true").status == "finished"
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("method", ["baseline", "pgt", "gc_pgt", "agc_pgt", "gc_value"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_does_not_make_the_host_wait(method, precision):
    overrides = (*TINY, "model=resnet20", f"method={method}", f"trainer.precision={precision}", "recipe.epochs=3")
    dataset = open_set(name="synthetic", num_samples=16, num_classes=10, image_size=32)
    loader, _, trainer = assemble(compose(*overrides), dataset, ALONE)
    groups = [next(loader.epoch(0))]
    for step in range(3):
        trainer.train_step(groups, step)
    before = trainer.model.fc.weight.detach().clone()
    try:
        torch.cuda.set_sync_debug_mode("error")  # whatever waits for the device raises
        trainer.train_step(groups, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.equal(before, trainer.model.fc.weight)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_recording_does_not_make_the_host_wait(precision):
    overrides = (*TINY, "model=resnet20", "method=agc_pgt", f"trainer.precision={precision}")
    dataset = open_set(name="synthetic", num_samples=16, num_classes=10, image_size=32)
    loader, _, trainer = assemble(compose(*overrides), dataset, ALONE)
    kept, groups = Kept(), [next(loader.epoch(0))]
    trainer.recorder = Recorder(trainer.model, 2, 4, kept)
    for step in range(2):
        trainer.train_step(groups, step)
    weight = trainer.model.blocks[0].conv1.weight.detach().clone()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for step in range(2, 5):
            trainer.train_step(groups, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.recorder.sync()
    assert list(kept) == [0, 2, 4]
    start = 6 + 64 + 16  # scalars, features, the first convolution's filters
    torch.testing.assert_close(torch.from_numpy(kept[2][start : start + 16]), weight.flatten(1).norm(dim=1).cpu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_float32_gradient_of_its_logits(dtype):
    layer, x = torch.nn.Linear(64, 100, device="cuda"), torch.randn(16, 64, device="cuda")
    y = torch.randint(100, (16,), device="cuda")
    with torch.autocast("cuda", dtype):
        z = layer(x)
        z.retain_grad()
        loss = power_grad_cross_entropy(z, y, 0.25)
    loss.backward()
    expected = ((0.25 * z.detach().float()).softmax(1) - F.one_hot(y, 100)) / 16
    torch.testing.assert_close(z.grad, expected.to(dtype))


@pytest.mark.skipif(not has_dali(), reason="needs NVIDIA DALI")
@pytest.mark.parametrize("dali_device", ["cpu", "gpu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dali_feeds_the_gpu_what_the_cpu_shows(tmp_path, dali_device, dtype):
    generate(tmp_path / "train", 16)
    generate(tmp_path / "val", 6)
    options = {**FOLDER, "backend": "dali", "image_size": 64}
    here = loaders(options)
    there = loaders({**options, "dali_device": dali_device}, device=torch.device("cuda"), dtype=dtype)
    for a, b in zip(here, there, strict=True):
        for _ in range(3):  # as often as buffers come round again
            for x, y in zip(a.epoch(0), b.epoch(0), strict=True):
                assert (y.images.device.type, y.images.dtype) == ("cuda", dtype)
                assert y.images.is_contiguous(memory_format=torch.channels_last)
                assert torch.equal(x.labels, y.labels.cpu())
                difference = (x.images - y.images.cpu().float()).abs()
                assert difference.mean() < 0.05  # nvJPEG is not libjpeg-turbo to the last bit


@pytest.mark.skipif(not has_dali(), reason="needs NVIDIA DALI")
@pytest.mark.parametrize("dali_device", ["cpu", "gpu"])
def test_the_loader_of_real_trainings_feeds_every_epoch(tmp_path, dali_device):
    """Eight workers start reader processes, and 224 pixels are what nvJPEG's memory is set aside for."""
    generate(tmp_path / "train", 160)
    generate(tmp_path / "val", 40)
    options = {**FOLDER, "backend": "dali", "image_size": 224}
    batch = {"global_batch": 64, "local_batch": 32}
    here = loaders({**options, "workers": 2}, **batch)
    device = torch.device("cuda")
    there = loaders({**options, "workers": 8, "dali_device": dali_device}, device=device, dtype=torch.float16, **batch)
    for epoch in range(2):
        for a, b in zip(here, there, strict=True):
            for x, y in zip(a.epoch(epoch), b.epoch(epoch), strict=True):
                assert torch.equal(x.labels, y.labels.cpu())
                assert (x.images - y.images.cpu().float()).abs().mean() < 0.05


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_goes_on_where_it_was_stopped_to_the_same_numbers(monkeypatch, capsys, precision):
    more = ("trainer.devices=1", "trainer.deterministic=true", f"trainer.precision={precision}")
    try:
        train(*SHORT, *more, "paths.runs=whole")
        assert "after step 2 of epoch 1" in stopped_at(monkeypatch, 2, *more)
        capsys.readouterr()
        train(*SHORT, *more)
        assert "from epoch 1, step 3  ->" in capsys.readouterr().out
        assert_same(result("runs"), result("whole"))
    finally:
        torch.use_deterministic_algorithms(False)


TWO = ("model=resnet20", "recipe.local_batch=2", "trainer.compile=true", "trainer.devices=2")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_compiled_and_accumulating_resume_where_they_were_stopped():
    process = begun(sys.executable, "-m", "pgt", "train", *LONG, *TWO)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGTERM, err
    step, epoch = map(int, re.search(r"after step (\d) of epoch (\d+);", err).groups())
    done = pgt("train", *LONG, *TWO)
    assert done.returncode == 0, done.stderr
    assert_goes_on(done.stdout, epoch - 1, step)
    [(_, summary)] = find(Path("runs"))
    assert (summary.status, summary.world_size) == ("finished", 2)


def test_torchvision_feeds_the_gpu_what_the_cpu_shows(tmp_path):
    generate(tmp_path / "train", 16)
    generate(tmp_path / "val", 6)
    options = {**FOLDER, "backend": "torchvision", "image_size": 64}
    for a, b in zip(loaders(options), loaders(options, device=torch.device("cuda")), strict=True):
        with closing(a), closing(b):
            for _ in range(3):  # as often as memory comes round again
                for x, y in zip(a.epoch(0), b.epoch(0), strict=True):
                    assert y.images.device.type == y.labels.device.type == "cuda"
                    assert y.images.is_contiguous(memory_format=torch.channels_last)
                    assert torch.equal(x.labels, y.labels.cpu())
                    torch.testing.assert_close(y.images.cpu(), x.images, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # of torch 2.11, while it compiles in float32
def test_the_doctor_finds_nothing_bad(capsys):
    code, said = cli.main(["doctor"]), capsys.readouterr().out
    assert code == 0, said
    assert "ok   compile" in said
