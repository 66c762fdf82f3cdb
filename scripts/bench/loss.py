"""Speed beside what a user would pick instead, both sides in turns in one process."""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pgt.methods import AuthorsHookCrossEntropy, power_grad_cross_entropy, surrogate_cross_entropy

ALPHA = 0.25

T = TypeVar("T")
Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "pgt": lambda z, y: power_grad_cross_entropy(z, y, ALPHA),
    "pgt, surrogate": lambda z, y: surrogate_cross_entropy(z, y, ALPHA),
    "authors' hook": lambda z, y: AuthorsHookCrossEntropy(ALPHA)(z, y),
}

COMPILED = ("cross_entropy", "pgt")
"""What is measured compiled, too."""


@dataclass(frozen=True)
class Case:
    """Logits [n, classes] on a device."""

    n: int
    classes: int
    dtype: torch.dtype
    device: str

    def __str__(self) -> str:
        return f"[{self.n}, {self.classes}] {str(self.dtype).removeprefix('torch.')} on {machine(self.device)}"


def cases() -> list[Case]:
    """A batch of ImageNet on the CPU; where there is a GPU, there, and a language model's logits."""
    found = [Case(256, 1000, torch.float32, "cpu")]
    if torch.cuda.is_available():
        found += [Case(256, 1000, torch.bfloat16, "cuda"), Case(8192, 128256, torch.bfloat16, "cuda")]
    return found


def machine(device: str) -> str:
    """Name of the device, with the CPU threads in use."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU ({torch.get_num_threads()} threads, {platform.machine()})"


def losses(rounds: int, compiled: bool) -> str:
    """Forward and backward of each loss, as Markdown.

    Args:
        rounds: measured rounds; each goes through all losses once.
        compiled: measure `COMPILED` under torch.compile, too.
    """
    return each_that_fits(cases(), lambda case: _losses(case, rounds, compiled))


def each_that_fits(cases: Iterable[T], measure: Callable[[T], str]) -> str:
    """The measurement of each case, or that the GPU has not the memory for it, as Markdown."""
    return "\n\n".join(_if_it_fits(case, measure) for case in cases)


def _if_it_fits(case: T, measure: Callable[[T], str]) -> str:
    try:
        return measure(case)
    except torch.OutOfMemoryError:
        return f"{case}: more memory than {torch.cuda.get_device_name()} has"
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _losses(case: Case, rounds: int, compiled: bool) -> str:
    from tabulate import tabulate

    candidates = {name: loss for name, loss in LOSSES.items() if case.n * case.classes < 1e8 or name in COMPILED}
    if compiled:
        for name in COMPILED:
            candidates[f"{name}, compiled"] = torch.compile(LOSSES[name], fullgraph=True, dynamic=False)
    generator = torch.Generator(case.device).manual_seed(0)
    z = 3 * torch.randn(case.n, case.classes, generator=generator, device=case.device)
    z = z.to(case.dtype)
    y = torch.randint(case.classes, (case.n,), generator=generator, device=case.device)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + max(rounds // 10, 3)):
        for name, loss in candidates.items():
            seconds = _timed(loss, z, y)
            if turn >= max(rounds // 10, 3):
                times[name].append(1e6 * seconds)
    reference = statistics.median(times["cross_entropy"])
    rows = []
    for name, measured in times.items():
        middle, kept = statistics.median(measured), _kept(candidates[name], z, y) / 2**20
        rows.append([name, f"{middle:.0f}", _quartiles(measured), f"{middle / reference:.2f}", f"{kept:.1f}"])
        if case.device == "cuda":
            rows[-1].append(f"{_peak(candidates[name], z, y) / 2**20:.1f}")
    headers = ["loss", "median µs", "quartiles", "× cross_entropy", "MiB kept for the backward pass", "peak MiB"]
    headers = headers[: len(rows[0])]
    parts = [str(case), tabulate(rows, headers, tablefmt="github", disable_numparse=True)]
    if case.device == "cuda":
        parts.append(f"Two reads and one write of the logits take {1e6 * _traffic(z):.0f} µs here.")
    return "\n\n".join(parts)


def _timed(loss: Loss, z: Tensor, y: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    z = z.detach().requires_grad_()
    _wait(z)
    started = time.perf_counter()
    loss(z, y).backward()
    _wait(z)
    return time.perf_counter() - started


def _kept(loss: Loss, z: Tensor, y: Tensor) -> int:
    """Bytes that the graph keeps alive between the passes, logits and target apart."""
    z = z.detach().requires_grad_()
    given = {z.data_ptr(), y.data_ptr()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in given:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(z, y)
    value.backward()
    return sum(sizes.values())


def _peak(loss: Loss, z: Tensor, y: Tensor) -> int:
    """Bytes on the GPU in use at the worst moment of both passes, beyond what was there before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _timed(loss, z, y)
    return torch.cuda.max_memory_allocated() - before


def _traffic(z: Tensor) -> float:
    """Seconds that two reads and one write of the logits take, from the speed of copies."""
    target = torch.empty_like(z)
    _wait(z)
    started = time.perf_counter()
    for _ in range(20):
        target.copy_(z)  # one read, one write
    _wait(z)
    return (time.perf_counter() - started) / 20 * 1.5


def _wait(z: Tensor) -> None:
    if z.device.type == "cuda":
        torch.cuda.synchronize()


def _quartiles(values: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.0f}–{high:.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="measured rounds (default: 300)")
    parser.add_argument("--compiled", action="store_true", help="under torch.compile, too (some minutes)")
    options = parser.parse_args(arguments)
    print(losses(options.rounds, options.compiled))


if __name__ == "__main__":
    main()
