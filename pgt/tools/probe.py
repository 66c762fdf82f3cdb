"""How fast this machine trains what is planned: 50 steps of each network on synthetic images, no loader, one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pgt import models
from pgt.core.machine import cpus
from pgt.core.registry import DATA_SETS
from pgt.core.types import Batch
from pgt.methods import PowerGradCrossEntropy
from pgt.reproduction.cost import Speed
from pgt.runs.norms import Floats
from pgt.training import optimizer
from pgt.training.precision import Precision
from pgt.training.recorder import Recorder
from pgt.training.trainer import Trainer

STEPS, WARM_UP = 50, 5


def speeds(identities: Iterable[Mapping[str, Any]], gpus: int) -> dict[str, Speed]:
    """Measured speed of each network among runs, in the setting of the first run that has it.

    Args:
        identities: of runs (see `pgt.config.identity`).
        gpus: that are to share a batch without batch norm.
    """
    found: dict[str, Speed] = {}
    for identity in identities:
        name = identity["model"]["name"]
        if name not in found:
            found[name] = _speed(_case(identity, gpus))
    return found


def _case(identity: Mapping[str, Any], gpus: int) -> Case:
    data, recipe, trainer = identity["data"], identity["recipe"], identity["trainer"]
    batch = recipe["local_batch"] or max(1, recipe["global_batch"] // gpus)
    size = data.get("image_size") or DATA_SETS[data["name"]].image_size
    precision = trainer["precision"] if torch.cuda.is_available() else "fp32"  # fp16 is many times slower on a CPU
    return Case(identity["model"]["name"], batch, size, precision)


def _speed(case: Case) -> Speed:
    torch.backends.cudnn.benchmark = True  # as training has it
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loop = ours(case, synthetic_batch(case, device), PowerGradCrossEntropy(0.25))
    loop(WARM_UP)
    seconds = timed(loop, STEPS, device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"this CPU ({cpus()} CPUs)"
    return Speed(case.batch / seconds, f"{STEPS} steps measured on {where}: {case}")


CLASSES, RATE, MOMENTUM, DECAY = 1000, 1e-3, 0.9, 5e-4


Steps = Callable[[int], None]
"""Number of steps -> None: does them, without waiting for the device."""


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        network: a name of `pgt.models`.
        batch, size: images [batch, 3, size, size].
        precision: as `trainer.precision`.
        compiled: networks and losses through torch.compile.
    """

    network: str
    batch: int
    size: int
    precision: str
    compiled: bool = False

    def __str__(self) -> str:
        compiled = ", compiled" if self.compiled else ""
        return f"{self.network}, {self.batch} x {self.size} x {self.size}, {self.precision}{compiled}"


def synthetic_batch(case: Case, device: torch.device) -> Batch:
    """One batch of random images and labels, where and as a step takes it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch, 3, case.size, case.size, generator=generator)
    labels = torch.randint(CLASSES, (case.batch,), generator=generator)
    dtype = Precision(case.precision, device.type).dtype
    return Batch(images.to(device, dtype, memory_format=torch.channels_last), labels.to(device))


def _network(case: Case, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    network = Precision(case.precision, device.type).apply(models.build(case.network, CLASSES))
    return network.to(device, memory_format=torch.channels_last).train()


class Nowhere:
    """Takes records and drops them."""

    def write(self, step: int, values: Floats) -> None:
        pass

    def sync(self) -> None:
        pass


def ours(case: Case, batch: Batch, loss: nn.Module, recording: bool = False) -> Steps:
    """What `pgt train` does, its files apart.

    Args:
        recording: the norms of each step.
    """
    device = batch.images.device
    network, precision = _network(case, device), Precision(case.precision, device.type)
    trainer = Trainer(
        model=network,
        loss=loss,
        optimizer=optimizer.build(network, MOMENTUM, DECAY, fused=device.type == "cuda"),
        schedule=lambda step: RATE,
        transforms=[],
        precision=precision,
        scaler=precision.scaler(65536, 2000),
        accumulating=False,
        compiled=case.compiled,
        recorder=Recorder(network, 1, 0, Nowhere()) if recording else None,
    )

    def loop(count: int) -> None:
        for step in range(count):
            trainer.train_step([batch], step)

    return loop


def timed(loop: Steps, length: int, device: torch.device) -> float:
    """Seconds of one step, over `length` of them."""
    _wait(device)
    started = time.perf_counter()
    loop(length)
    _wait(device)
    return (time.perf_counter() - started) / length


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
