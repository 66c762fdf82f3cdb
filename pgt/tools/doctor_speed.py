"""The doctor's check of speed: whether the loader keeps up with a network on the first device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import torch

from pgt.config.compose import compose_all
from pgt.config.grammar import written
from pgt.core.machine import cpus, has_dali
from pgt.core.types import Loader
from pgt.core.words import counted
from pgt.data.delivery import Delivery
from pgt.methods import PowerGradCrossEntropy
from pgt.tools.finding import NOTE, OK, Finding
from pgt.tools.probe import Case, first_device, seconds_a_step, synthetic_batch, training_steps, wait_for
from pgt.training.job import open_data
from pgt.training.ranks import visible_gpus

GPU_CASE, CPU_CASE = Case("resnet50", 128, 224, "fp16"), Case("resnet18", 16, 224, "fp32")
"""The network that the loader has to keep up with, and the batch of a rank."""
GPU_STEPS, CPU_STEPS = (10, 20), (1, 2)
"""Steps before the timed ones, and the timed ones."""
WARM_UP, SECONDS = 4, 5.0
"""Batches that are not timed, since they may have been prepared before, and how long the others are timed."""


def loader_and_network(root: Path) -> Iterator[Finding]:
    """Compare the images per second of the training loader, as a rank has it, with those that a network trains on."""
    device = first_device()
    on_gpu = device.type == "cuda"
    case, (before, timed) = (GPU_CASE, GPU_STEPS) if on_gpu else (CPU_CASE, CPU_STEPS)
    share = max(1, cpus() // max(1, visible_gpus()))
    [config] = compose_all(["data=imagefolder", f"data.root={written(str(root))}"])
    dataset = open_data(config)
    dtype = torch.float16 if on_gpu else torch.float32
    train, test = dataset.loaders(Delivery(device, dtype, case.batch, case.batch, seed=0, drop_last=False, cpus=share))
    with closing(train), closing(test):
        read = images_a_second(train, device)
    loop = training_steps(case, synthetic_batch(case, device), PowerGradCrossEntropy(0.25))
    loop(before)
    yield compared(read, case.batch / seconds_a_step(loop, timed, device), case.network, device, train.workers, share)


def images_a_second(loader: Loader, device: torch.device) -> float:
    """Return how many images a loader delivers per second."""
    batches = (batch for epoch in count() for batch in loader.epoch(epoch))
    with closing(batches):
        for _ in range(WARM_UP):
            next(batches)
        wait_for(device)
        images, started = 0, time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            images += len(next(batches).images)
        wait_for(device)
        return images / (time.perf_counter() - started)


def compared(read: float, trained: float, network: str, device: torch.device, workers: int, share: int) -> Finding:
    """Judge a loader by the images per second that it reads and that the network trains on.

    Args:
        workers: of the loader; 0: none, it decodes in the training process.
        share: CPUs of a rank.
    """
    where = "GPU" if device.type == "cuda" else "CPU"
    speeds = f"{read:,.0f} images/s with {counted(workers, 'data worker')}, {network} trains on {trained:,.0f}"
    if read >= trained:
        return Finding(OK, f"the loader keeps up with this {where}: {speeds}")
    if workers < share:
        mend = f"raise data.workers (up to {share})"
    elif not has_dali():
        mend = "install NVIDIA DALI, which decodes faster"
    else:
        mend = f"each GPU has {share} CPUs: use fewer GPUs, more CPUs, or smaller copies of the images"
    return Finding(NOTE, f"your loader feeds {read / trained:.0%} of this {where} ({speeds}): {mend}")
