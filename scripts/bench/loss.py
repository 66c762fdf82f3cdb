"""Speed and memory of our loss beside those that a user would pick instead, all in turns in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pgt.methods import power_grad_cross_entropy, smooth_labels, surrogate_cross_entropy
from pgt.methods.authors_hook import hook_gradient
from pgt.methods.gradient import full_precision
from pgt.tools.probe import wait_for
from scripts.bench.results import Result, each_that_fits, entry, in_turns, machine, options, show, table

ALPHA = 0.25

Loss = Callable[[Tensor, Tensor], Tensor]


def authors_hook(z: Tensor, y: Tensor) -> Tensor:
    """The published listing alone, without what `AuthorsHookCrossEntropy` measures of it."""
    q = smooth_labels(y, z.shape[1], 0.0, dtype=z.dtype)
    z.register_hook(lambda grad: hook_gradient(grad, q, ALPHA))
    return F.cross_entropy(full_precision(z), y)


LOSSES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "pgt": lambda z, y: power_grad_cross_entropy(z, y, ALPHA),
    "pgt, surrogate": lambda z, y: surrogate_cross_entropy(z, y, ALPHA),
    "authors' hook": authors_hook,
}

COMPILED = ("cross_entropy", "pgt")
"""Losses that `--compiled` measures under torch.compile, too."""


@dataclass(frozen=True)
class Case:
    """Logits [n, classes] on a device."""

    n: int
    classes: int
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        return f"[{self.n}, {self.classes}] {self.precision} on {machine(self.device)}"

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def cases() -> list[Case]:
    """Return a batch of ImageNet on the CPU and, if there is a GPU, on that, with a language model's logits."""
    found = [Case(256, 1000, torch.float32, torch.device("cpu"))]
    if torch.cuda.is_available():
        gpu = torch.device("cuda")
        found += [Case(256, 1000, torch.bfloat16, gpu), Case(8192, 128256, torch.bfloat16, gpu)]
    return found


def measure(case: Case, rounds: int, compiled: bool, results: list[Result]) -> str:
    """Measure forward and backward pass of each loss on one case.

    Args:
        case: the logits.
        rounds: measured rounds; each goes through all losses once.
        compiled: whether to measure `COMPILED` under torch.compile, too.
        results: takes the result of each loss.

    Returns:
        A Markdown table.
    """
    candidates = {name: loss for name, loss in LOSSES.items() if case.n * case.classes < 1e8 or name in COMPILED}
    if compiled:
        for name in COMPILED:
            candidates[f"{name}, compiled"] = torch.compile(LOSSES[name], fullgraph=True, dynamic=False)
    generator = torch.Generator(case.device).manual_seed(0)
    z = 3 * torch.randn(case.n, case.classes, generator=generator, device=case.device)
    z = z.to(case.dtype)
    y = torch.randint(case.classes, (case.n,), generator=generator, device=case.device)
    timed = {name: partial(_timed, loss, z, y) for name, loss in candidates.items()}
    in_turns(max(rounds // 10, 3), timed)  # to warm up
    times = {name: [1e6 * seconds for seconds in found] for name, found in in_turns(rounds, timed).items()}
    reference = statistics.median(times["cross_entropy"])
    described = {"samples": case.n, "classes": case.classes, "precision": case.precision}
    rows = []
    for name, measured in times.items():
        middle, kept = statistics.median(measured), _kept(candidates[name], z, y) / 2**20
        results.append(entry("loss", described, name, machine(case.device), milliseconds=middle / 1e3))
        rows.append([name, f"{middle:.0f}", _quartiles(measured), f"{middle / reference:.2f}", f"{kept:.1f}"])
        if case.device.type == "cuda":
            rows[-1].append(f"{_peak(candidates[name], z, y) / 2**20:.1f}")
    headers = ["loss", "median µs", "quartiles", "× cross_entropy", "MiB kept for the backward pass", "peak MiB"]
    parts = [str(case), table(rows, headers)]
    if case.device.type == "cuda":
        parts.append(f"Two reads and one write of the logits take {1e6 * _traffic(z):.0f} µs here.")
    return "\n\n".join(parts)


def _timed(loss: Loss, z: Tensor, y: Tensor) -> float:
    """Return the seconds of one forward and backward pass."""
    z = z.detach().requires_grad_()
    wait_for(z.device)
    started = time.perf_counter()
    loss(z, y).backward()
    wait_for(z.device)
    return time.perf_counter() - started


def _kept(loss: Loss, z: Tensor, y: Tensor) -> int:
    """Return the bytes that graph and hooks keep for the backward pass, without logits and target."""
    z = z.detach().requires_grad_()
    given, before = {z.data_ptr(), y.data_ptr()}, {id(tensor) for tensor in _visible()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in given:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(z, y)
    for tensor in _visible():  # those that a hook's closure holds
        if id(tensor) not in before and tensor is not value:
            pack(tensor)
    value.backward()
    return sum(sizes.values())


def _visible() -> list[Tensor]:
    """Return the tensors that Python objects hold."""
    return [found for found in gc.get_objects() if type(found) is Tensor]


def _peak(loss: Loss, z: Tensor, y: Tensor) -> int:
    """Return the highest use of GPU memory during both passes, in bytes, beyond what was in use before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _timed(loss, z, y)
    return torch.cuda.max_memory_allocated() - before


def _traffic(z: Tensor) -> float:
    """Return the seconds that two reads and one write of the logits take, by the speed of copies."""
    target = torch.empty_like(z)
    wait_for(z.device)
    started = time.perf_counter()
    for _ in range(20):
        target.copy_(z)  # one read, one write
    wait_for(z.device)
    return (time.perf_counter() - started) / 20 * 1.5


def _quartiles(values: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.0f}–{high:.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = options(__doc__, rounds=300)
    parser.add_argument("--compiled", action="store_true", help="under torch.compile, too (some minutes)")
    given, results = parser.parse_args(arguments), list[Result]()
    text = each_that_fits(cases(), lambda case: measure(case, given.rounds, given.compiled, results))
    show(text, results, given.json)


if __name__ == "__main__":
    main()
