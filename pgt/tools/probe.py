"""The speed of training steps on synthetic images, on one device and without a loader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pgt import models
from pgt.core.machine import cpus
from pgt.core.registry import TIMM
from pgt.core.types import Batch
from pgt.methods import PowerGradCrossEntropy
from pgt.reproduction.cost import Speed, image_size, images_at_once
from pgt.training import optimizer
from pgt.training.precision import Precision
from pgt.training.recorder import File, Recorder
from pgt.training.trainer import Trainer
from pgt.training.trial import REFUSALS

STEPS, WARM_UP = 50, 5
"""Steps of a probe: those that are timed, and those before them."""


CLASSES, RATE, MOMENTUM, DECAY = 1000, 1e-3, 0.9, 5e-4
"""Classes of every measured network, and the settings of its optimizer."""

Steps = Callable[[int], None]
"""A function that does a given number of training steps without waiting for the device."""


@dataclass(frozen=True)
class Case:
    """A network and how it is trained.

    Attributes:
        network: a name in `pgt.models`.
        batch, size: of the images [batch, 3, size, size].
        precision: as `trainer.precision`.
        compiled: whether network and loss go through torch.compile.
        stem: as `model.stem`.
    """

    network: str
    batch: int
    size: int
    precision: str
    compiled: bool = False
    stem: str = "standard"

    def __str__(self) -> str:
        compiled = ", compiled" if self.compiled else ""
        return f"{self.network}, {self.batch} x {self.size} x {self.size}, {self.precision}{compiled}"


def speeds(runs: Iterable[tuple[Mapping[str, Any], int]]) -> dict[str, Speed]:
    """Measure the speed of each network among runs, with the settings of its first run.

    Networks of the user's own, and those that cannot take images of that size, are left out: their speed stays unknown.

    Args:
        runs: the config values of each by dotted name, and the number of GPUs that share its batch.
    """
    found: dict[str, Speed] = {}
    for config, gpus in runs:
        case = _case(config, gpus)
        known = case.network in models.MODELS or case.network.startswith(TIMM)
        if case.network not in found and known and _fits(case):
            found[case.network] = _speed(case)
    return found


def _fits(case: Case) -> bool:
    """Whether the network can take images of the case's size."""
    network = models.build(case.network, CLASSES, case.stem).eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, case.size, case.size))
    except REFUSALS:
        return False
    return True


def _case(config: Mapping[str, Any], gpus: int) -> Case:
    precision = config["trainer.precision"] if torch.cuda.is_available() else "fp32"  # fp16 is very slow on a CPU
    stem = config.get("model.stem", "standard")
    batch, size = images_at_once(config, gpus), image_size(config)
    return Case(config["model.name"], batch, size, precision, stem=stem)


def _speed(case: Case) -> Speed:
    torch.backends.cudnn.benchmark = True  # as in training
    device = first_device()
    loop = training_steps(case, synthetic_batch(case, device), PowerGradCrossEntropy(0.25))
    loop(WARM_UP)
    seconds = seconds_a_step(loop, STEPS, device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"this CPU ({cpus()} CPUs)"
    return Speed(case.batch / seconds, f"{STEPS} steps measured on {where}: {case}")


def first_device() -> torch.device:
    """Return the first GPU, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synthetic_batch(case: Case, device: torch.device) -> Batch:
    """Return random images and labels on the device, in the precision and memory format of a training step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch, 3, case.size, case.size, generator=generator)
    labels = torch.randint(CLASSES, (case.batch,), generator=generator)
    dtype = Precision(case.precision, device.type).dtype
    return Batch(images.to(device, dtype, memory_format=torch.channels_last), labels.to(device))


def build_network(case: Case, device: torch.device) -> nn.Module:
    """Build the case's network for training on a device, with the same weights each time."""
    torch.manual_seed(0)
    network: nn.Module = Precision(case.precision, device.type).apply(models.build(case.network, CLASSES, case.stem))
    return network.to(device).to(memory_format=torch.channels_last).train()


def training_steps(case: Case, batch: Batch, loss: nn.Module, norms: File | None = None) -> Steps:
    """Return the training steps of `pgt train`, without its files.

    Args:
        norms: takes the norms of each step, if they are to be recorded.
    """
    device = batch.images.device
    network, precision = build_network(case, device), Precision(case.precision, device.type)
    trainer = Trainer(
        model=network,
        loss=loss,
        optimizer=optimizer.build(network, MOMENTUM, DECAY, fused=device.type == "cuda"),
        schedule=lambda step: RATE,
        alterations=[],
        precision=precision,
        scaler=precision.scaler(65536, 2000),
        accumulating=False,
        compiled=case.compiled,
        recorder=Recorder(network, 1, 0, norms) if norms else None,
    )

    def loop(count: int) -> None:
        for step in range(count):
            trainer.train_step([batch], step)

    return loop


def seconds_a_step(loop: Steps, count: int, device: torch.device) -> float:
    """Time `count` steps and return the seconds of one."""
    wait_for(device)
    started = time.perf_counter()
    loop(count)
    wait_for(device)
    return (time.perf_counter() - started) / count


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
