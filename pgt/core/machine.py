"""The machine that a run is made on: its packages, its CPUs, and the rank that a launcher has given this process."""

from __future__ import annotations

import os
import platform
import re
import subprocess  # nosec B404  # only for git, without a shell
import sys
from collections.abc import Mapping
from contextlib import suppress
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
    "pillow",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
)

CGROUP = Path("/sys/fs/cgroup")
"""The folder in which Linux shows a container its limits."""

COMMIT = "COMMIT"
"""Name of the file that holds the commit, in a wheel or another copy of the package that is no Git checkout."""

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables by which torchrun tells a process its place among the others."""


def describe(device: str, threads: int) -> dict[str, Any]:
    """The versions of packages and the machine, as plain values, for `environment.json`.

    Args:
        device: name of the training device.
        threads: `torch.get_num_threads()`; the last bits of a loss depend on it.
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
    """The numbers of the CPUs that this process may use."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def cpus() -> int:
    """The number of CPUs that this process may use: those of `affinity`, or fewer if its container has a quota."""
    bound, limit = len(affinity()), quota()
    return bound if limit is None else min(bound, limit)


def quota() -> int | None:
    """The CPUs whose time a container may use, rounded up; None if nothing limits it.

    Docker's `--cpus` and the `limits.cpu` of Kubernetes set it, as microseconds in each period of so many.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroup v2, v1
        with suppress(OSError, ValueError):  # no such files; "max" and −1 for no limit
            time, period = (int(word) for name in names for word in (CGROUP / name).read_text().split())
            if time > 0:
                return -(-time // period)
    return None


def commit() -> str:
    """The Git commit of this program, with a `+` if its tree has changes; outside a checkout, its version.

    A wheel has the commit that it was built from in a file, which scripts/hatch_build.py has written.
    """
    package = Path(__file__).resolve().parent.parent
    if (package / COMMIT).is_file():
        return (package / COMMIT).read_text().strip()
    root = package.parent
    released = f"version {_version('powergrad')}"
    if not (root / ".git").exists():
        return released
    head, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    if head is None or changes is None:
        return released
    return head[:12] + ("+" if changes else "")


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)  # nosec B603  # fixed words
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def rank_environment(variables: Mapping[str, str]) -> dict[str, str] | None:
    """The environment variables of a process that torchrun or srun has started as one of several; None for any other.

    They are torchrun's, `RANK_VARIABLES`. Those of srun are translated: rank 0 listens on the step's first node, at a
    port that depends on the job and the step. A single process that has RANK=0 and WORLD_SIZE=1 from elsewhere, such as
    the only pod of a Kubernetes training operator, counts as one on its own.

    Raises:
        InputError: the variables are incomplete or contradict each other, or one that must be a number is not.
    """
    alone = {"RANK": "0", "WORLD_SIZE": "1"}
    try:
        if "TORCHELASTIC_RUN_ID" in variables or alone.keys() & variables.keys():
            rank, size = (int(_number({**alone, **variables}, name)) for name in alone)
            if rank >= size:
                raise InputError(
                    f"RANK={rank} does not go with WORLD_SIZE={size}, since ranks count from 0: unset both, or start "
                    "the processes by torchrun or srun"
                )
            if size > 1 or {"LOCAL_RANK", "MASTER_ADDR"} <= variables.keys():
                return {name: _number(variables, name) for name in RANK_VARIABLES}
        if "SLURM_STEP_NUM_TASKS" in variables and int(_number(variables, "SLURM_STEP_NUM_TASKS")) > 1:
            job, step = (int(_number(variables, name)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
            port = 20_000 + (job * 16 + step % 16) % 20_000
            return {
                "RANK": variables["SLURM_PROCID"],
                "WORLD_SIZE": variables["SLURM_STEP_NUM_TASKS"],
                "LOCAL_RANK": variables["SLURM_LOCALID"],
                "LOCAL_WORLD_SIZE": variables["SLURM_STEP_TASKS_PER_NODE"].split("(")[0].split(",")[0],  # 4(x2),1
                "MASTER_ADDR": first_host(variables["SLURM_STEP_NODELIST"]),
                "MASTER_PORT": str(port),
            }
    except KeyError as error:
        raise InputError(f"started as one of several processes, but {error} is not set: use torchrun or srun") from None
    return None


def _number(variables: Mapping[str, str], name: str) -> str:
    """A variable that must be a number, unless it is the address."""
    if name != "MASTER_ADDR" and not variables[name].strip().isdecimal():
        raise InputError(
            f"{name}={variables[name]} is not a number: unset it, or start the processes by torchrun or srun"
        )
    return variables[name]


def first_host(nodes: str) -> str:
    """The first host of Slurm's node list: `gpu007` of `gpu[007-009,012],login1`, `r0n2-ib` of `r[0-1]n[2-3]-ib`."""
    head = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    assert head is not None, nodes
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", head[0])


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
