"""The ranks that train together, as the trainer sees them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pgt.core.errors import InputError, Stopped
from pgt.core.machine import Place, affinity, cpus

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone by default.

    Attributes:
        rank, world_size: among all.
        local_rank: among those on this machine.
        cpus: that this rank may use without taking them from another one.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    cpus: int = field(default_factory=cpus)

    @property
    def first(self) -> bool:
        """Whether this rank writes and speaks."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This rank's GPU: the only one where Slurm shows each task its own, else the one of its local rank."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank if torch.cuda.device_count() > 1 else 0)

    def share(self, value: T) -> T:
        """The first rank's value, on every rank. It must pickle."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in their order, on every rank. It must pickle."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The maximum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def highest(self, number: int) -> int:
        """The maximum over ranks, through the CPU: no device is waited for."""
        return int(self.largest(torch.tensor(number))) if self.world_size > 1 else number

    def mean_(self, tensors: list[Tensor]) -> None:
        """Each becomes its mean over ranks."""
        for tensor in tensors if self.world_size > 1 else ():
            dist.all_reduce(tensor)
            tensor /= self.world_size

    def copy_(self, tensors: list[Tensor]) -> None:
        """Each becomes the first rank's."""
        for tensor in tensors if self.world_size > 1 else ():
            dist.broadcast(tensor, 0)


ALONE = Ranks()


@dataclass(frozen=True)
class Equipment:
    """What a process may use.

    Attributes:
        machine: its name.
        cpus: their numbers there.
        gpu: which one it trains on; None: there is none for it.
    """

    machine: str
    cpus: frozenset[int]
    gpu: str | None


def equipment(ranks: Ranks) -> Equipment:
    """This process's own."""
    index, gpu = ranks.device.index, None
    if index is not None and index < torch.cuda.device_count():
        gpu = str(torch.cuda.get_device_properties(index).uuid)
    return Equipment(platform.node(), affinity(), gpu)


def visible_gpus() -> int:
    """How many GPUs this process sees.

    Raises:
        InputError: there are some, and torch cannot use them: training would go on on the CPU without a word.
    """
    count = torch.cuda.device_count()
    if count and not torch.cuda.is_available():
        raise InputError(
            f"{count} GPUs are there, and torch {torch.__version__} cannot use them: their driver (`nvidia-smi`) may "
            f"be too old for its CUDA {torch.version.cuda}; update it, install a torch for an older CUDA, or set "
            "CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    return count


def check_kernels(device: torch.device) -> None:
    """Raises InputError where this torch has no kernels for the device."""
    if device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in torch.cuda.get_arch_list()]
    found = [(match[1], int(match[2]), int(match[3])) for match in built if match]
    if not found:  # ROCm has other names
        return
    own = any(kind == "sm" and m == major and n <= minor for kind, m, n in found)
    if not own and not any(kind == "compute" and (m, n) <= (major, minor) for kind, m, n in found):
        raise InputError(
            f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name(device)} (compute capability "
            f"{major}.{minor}): install a torch for an older CUDA, for a V100 that of CUDA 12.6, and DALI by "
            "the extra dali-cuda12"
        )


def check_gpus(processes: Sequence[Equipment]) -> None:
    """Raises InputError unless each process has a GPU of its own, wherever a machine has any."""
    for machine in sorted({process.machine for process in processes}):
        gpus = [process.gpu for process in processes if process.machine == machine]
        found = len({*gpus} - {None})
        if 0 < found < len(gpus):
            raise InputError(
                f"{len(gpus)} processes on {machine}, which shows them {found} GPUs: start one a GPU "
                "(--nproc-per-node of torchrun, --ntasks-per-node of srun)"
            )


def cpu_share(processes: Sequence[Equipment], rank: int) -> int:
    """How many CPUs a process may use: all that it is bound to, divided by those that may use some of them, too."""
    own = processes[rank]
    sharing = sum(process.machine == own.machine and not own.cpus.isdisjoint(process.cpus) for process in processes)
    return max(1, len(own.cpus) // sharing)


def meet(place: Place, minutes: float = 10) -> dist.Store:
    """What the processes find each other by; the first one is waited for."""
    return next(dist.rendezvous(place.meeting, place.rank, place.world_size, timeout=timedelta(minutes=minutes)))[0]


@contextmanager
def joined(place: Place, store: dist.Store, timeout_minutes: float) -> Iterator[Ranks]:
    """Within it the ranks can talk to each other: NCCL between GPUs, gloo between CPUs.

    Args:
        store: that all of them have met at.
        timeout_minutes: that a rank waits for another.

    Raises:
        InputError: more processes than GPUs on a machine that has any, or GPUs that torch cannot use.
    """
    visible_gpus()
    ranks = Ranks(place.rank, place.world_size, place.local_rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(minutes=timeout_minutes),
    )
    processes = ranks.gather(equipment(ranks))
    try:
        check_gpus(processes)
    except InputError as error:
        error.said = not ranks.first
        raise
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.device)
    ranks = replace(ranks, cpus=cpu_share(processes, ranks.rank))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(ranks.cpus)
    try:
        yield ranks
    except Stopped:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()  # after an error it may wait for ranks that wait for this one


def lost(error: BaseException) -> bool:
    """Whether an exception only says that another rank does not answer (any more)."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "nccl", "process group"))
