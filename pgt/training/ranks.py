"""The ranks that train together: their process group, what they exchange, and what each of them may use."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pgt.core.errors import InputError, LostRankError, RankZeroError, Stopped, TrainingError, exit_code, one_line
from pgt.core.machine import affinity, cpus, quota

T = TypeVar("T")

# Torch 2.15 has a public name for it.
set_group_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks that train together; by default it is the only one.

    Every method is a collective operation: all ranks call it. With a world size of 1 each returns its argument
    (`broadcast_result` what its function returns, `all_gather_object` a list of one).

    Attributes:
        rank, world_size: among all ranks.
        local_rank: among the ranks on this machine.
        cpus: number of CPUs that this rank may use without taking them from another one.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    cpus: int = field(default_factory=cpus)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes files and prints."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This rank's GPU: the one of its local rank, or the only visible one if Slurm shows each task its own."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank if torch.cuda.device_count() > 1 else 0)

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value, on every rank. It must pickle."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def broadcast_result(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 alone, and return its result on every rank. It must pickle.

        Raises:
            Exception: on rank 0, whatever the function raises.
            RankZeroError: on the other ranks, if it raises.
        """
        if self.world_size == 1:
            return function()
        result: T | RankZeroError
        if not self.first:
            result = self.broadcast_object(RankZeroError(0))
            if isinstance(result, RankZeroError):
                raise result
            return result
        try:
            result = function()
        except Exception as error:
            self.broadcast_object(RankZeroError(exit_code(error)))
            raise
        self.broadcast_object(result)
        return result

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all ranks, in order, on every rank. They must pickle."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """The maximum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def all_reduce_max_int(self, number: int) -> int:
        """The maximum of a number over ranks. It goes through the CPU, so that no rank waits for its GPU."""
        return int(self.all_reduce_max(torch.tensor(number))) if self.world_size > 1 else number

    def all_reduce_mean_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over ranks."""
        for tensor in tensors if self.world_size > 1 else ():
            dist.all_reduce(tensor)
            tensor /= self.world_size

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by rank 0's."""
        for tensor in tensors if self.world_size > 1 else ():
            dist.broadcast(tensor, 0)

    def set_timeout(self, minutes: float) -> None:
        """Set how long a rank waits for another one in each later exchange."""
        if self.world_size > 1:
            set_group_timeout(timedelta(minutes=minutes))


ALONE = Ranks()


@dataclass(frozen=True)
class Equipment:
    """The part of a machine that one process may use.

    Attributes:
        machine: its name.
        cpus: their numbers there.
        gpu: the id of the GPU that it trains on; None if there is none for it.
        quota: the number of CPUs whose time all processes of its container may use together; None if nothing limits it.
    """

    machine: str
    cpus: frozenset[int]
    gpu: str | None
    quota: int | None = None


def equipment(ranks: Ranks) -> Equipment:
    """The equipment of this process."""
    index, gpu = ranks.device.index, None
    if index is not None and index < torch.cuda.device_count():
        gpu = str(torch.cuda.get_device_properties(index).uuid)
    return Equipment(platform.node(), affinity(), gpu, quota())


def visible_gpus() -> int:
    """The number of GPUs that this process sees.

    Raises:
        InputError: torch cannot use them; otherwise training would silently take place on the CPU.
    """
    count = torch.cuda.device_count()
    if count and not torch.cuda.is_available():
        raise InputError(
            f"{count} GPUs are there, and torch {torch.__version__} cannot use them: their driver (`nvidia-smi`) may "
            f"be too old for its CUDA {torch.version.cuda}; update it, install a torch for an older CUDA, or train "
            "on the CPU with CUDA_VISIBLE_DEVICES= before the command"
        )
    return count


def check_kernels(device: torch.device) -> None:
    """Raise InputError if this torch has no kernels for the device."""
    if device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in torch.cuda.get_arch_list()]
    found = [(match[1], int(match[2]), int(match[3])) for match in built if match]
    if not found:  # ROCm names its architectures differently
        return
    own = any(kind == "sm" and m == major and n <= minor for kind, m, n in found)
    if not own and not any(kind == "compute" and (m, n) <= (major, minor) for kind, m, n in found):
        raise InputError(
            f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name(device)} (compute capability "
            f"{major}.{minor}): install an older build; for a V100 torch >= 2.11, < 2.15 of CUDA 12.6 and the "
            "extra dali-cuda12 (docs/gpus.md)"
        )


def check_gpus(processes: Sequence[Equipment]) -> None:
    """Raise InputError unless each process has a GPU of its own, on every machine that has any."""
    for machine in sorted({process.machine for process in processes}):
        gpus = [process.gpu for process in processes if process.machine == machine]
        found = len({*gpus} - {None})
        if 0 < found < len(gpus):
            raise InputError(
                f"{len(gpus)} processes on {machine}, which shows them {found} GPUs: start one a GPU "
                "(--nproc-per-node of torchrun, --ntasks-per-node of srun)"
            )


def cpu_share(processes: Sequence[Equipment], rank: int) -> int:
    """The number of CPUs for a process: its share of those that it is bound to, and of its container's quota."""
    own = processes[rank]
    here = [process for process in processes if process.machine == own.machine]
    share = len(own.cpus) // sum(not own.cpus.isdisjoint(process.cpus) for process in here)
    return max(1, share if own.quota is None else min(share, own.quota // len(here)))


@contextmanager
def process_group(timeout_minutes: float = 10) -> Iterator[Ranks]:
    """A context in which the ranks can communicate, through NCCL between GPUs and gloo between CPUs.

    It reads the environment variables that torchrun sets (`pgt.core.machine.RANK_VARIABLES`).

    Args:
        timeout_minutes: how long a rank waits for another one.

    Raises:
        InputError: torch cannot use the GPUs, or a machine that has GPUs has fewer of them than processes.
        RankZeroError: the same on the other ranks, if all of them find it.
        LostRankError: another rank no longer answers.
        TrainingError: NCCL fails for another reason.
    """
    visible_gpus()
    ranks = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(minutes=timeout_minutes)
        )
        processes = ranks.all_gather_object(equipment(ranks))
        ranks.broadcast_result(lambda: check_gpus(processes))
        if torch.cuda.is_available():
            torch.cuda.set_device(ranks.device)
        ranks = replace(ranks, cpus=cpu_share(processes, ranks.rank))
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(ranks.cpus)
        yield ranks
    except Stopped:
        dist.destroy_process_group()
        raise
    except Exception as error:  # without destroying the group: that may wait for ranks that wait for this one
        if not _is_lost(error):
            if isinstance(error, dist.DistBackendError):
                raise TrainingError(f"the ranks cannot communicate: {one_line(error)}") from error
            raise
        unreachable = "connectFullMesh" in str(error)  # gloo chose a network that the other machines do not reach
        mend = "; set GLOO_SOCKET_IFNAME to the name of the network that all machines share" if unreachable else ""
        raise LostRankError(f"lost the other ranks: {one_line(error)}{mend}") from error
    dist.destroy_process_group()


def host_store() -> tuple[object, int]:
    """A store on this machine at which ranks can meet, as torchrun's agent hosts one, and its port."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    return store, store.port


def _is_lost(error: Exception) -> bool:
    """Whether an exception only says that another rank does not answer."""
    text = str(error).lower()
    if "nccl error" in text:  # it may as well be this rank's: no memory, no room in /dev/shm, two ranks on one GPU
        return any(word in text for word in ("remote", "peer", "connection", "timeout", "timed out"))
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    # Gloo's errors name a file of its own, but for "Application timeout caused pair closure".
    words = ("gloo", "pair closure", "nccl", "process group")
    return isinstance(error, RuntimeError) and any(word in text for word in words)
