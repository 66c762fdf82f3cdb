"""Where and with what a run was made: what `environment.json` holds. No torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    root = Path(__file__).resolve().parent.parent
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
