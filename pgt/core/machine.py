"""Where and with what a run was made: what `environment.json` holds. No torch."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pgt.core.errors import InputError

PACKAGES = (
    "powergrad",
    "torch",
    "torchvision",
    "timm",
    "hydra-core",
    "omegaconf",
    "numpy",
    "scikit-learn",
    "pillow",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
)


def describe(device: str, threads: int) -> dict[str, Any]:
    """Packages and machine, as plain values.

    Args:
        device: name of the training device.
        threads: CPU threads of one operation; the last bits of a loss depend on them.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": platform.node(),
        "platform": platform.platform(),
        "device": device,
        "cpus": cpus(),
        "threads": threads,
        "command": sys.argv,
    }


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed."""
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


def affinity() -> frozenset[int]:
    """Numbers of the CPUs that this process may use."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(affinity())


def commit() -> str:
    """Git commit of this program, followed by `+` where its tree has changes; its version outside a checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    released = f"version {_version('powergrad')}"
    if not (root / ".git").exists():
        return released
    head, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    if head is None or changes is None:
        return released
    return head[:12] + ("+" if changes else "")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that train together.

    Attributes:
        rank, world_size: among all.
        local_rank, local_size: among those on this machine.
        meeting: where they find each other: an `init_method` of torch.distributed.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    meeting: str


def found() -> Place | None:
    """This process's place where torchrun or srun has started it as one of several.

    Raises:
        InputError: their environment variables are incomplete.
    """
    variables = os.environ
    try:
        if "TORCHELASTIC_RUN_ID" in variables or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= variables.keys():
            keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
            return Place(*(int(variables[key]) for key in keys), "env://")
        if int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            keys = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
            size = int(re.match(r"\d+", variables["SLURM_STEP_TASKS_PER_NODE"])[0])
            port = 20_000 + (int(variables["SLURM_JOB_ID"]) * 16 + int(variables["SLURM_STEP_ID"]) % 16) % 20_000
            host = first_host(variables["SLURM_STEP_NODELIST"])
            return Place(*(int(variables[key]) for key in keys), size, f"tcp://{host}:{port}")
    except KeyError as error:
        raise InputError(f"started as one of several processes, but {error} is not set: use torchrun or srun") from None
    return None


def first_host(nodes: str) -> str:
    """The first of Slurm's node list: `gpu007` of `gpu[007-009,012],login1`."""
    head = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    assert head is not None, nodes
    return head[1] + (head[2] or "")


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
