"""How fast this machine trains what is planned: 50 steps of each network on synthetic images, no loader, one device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pgt.environment import cpus
from pgt.methods import PowerGradCrossEntropy
from pgt.reproduction.cost import Speed
from pgt.tools.bench_step import Case, ours, synthetic_batch, timed

STEPS, WARM_UP = 50, 5

SIZES = {"cifar10": 32, "cifar100": 32, "digits": 8}
"""Pixels of the data sets that do not say."""


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
    size = data.get("image_size") or SIZES[data["name"]]
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
