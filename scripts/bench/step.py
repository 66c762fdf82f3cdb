"""A training step of ours, with and without its norms recorded, beside a bare PyTorch loop and timm's step."""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pgt.core.machine import cpus
from pgt.core.types import Batch
from pgt.methods import PowerGradCrossEntropy
from pgt.tools.probe import DECAY, MOMENTUM, RATE, Case, Steps, _network, ours, synthetic_batch, timed
from scripts.bench.loss import each_that_fits

REFERENCE, PLAIN, RECORDING = "bare loop", "pgt, baseline", "pgt, norms each step"
EVERY = 50
"""Steps between two records of norms that their cost is stated for."""
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "V100": 125e12}
"""Dense 16-bit matrix operations a second, by the makers' data sheets."""


def cases() -> list[Case]:
    """ResNet-18 and -50 on small images on the CPU; on a GPU the paper's networks at its batch."""
    if not torch.cuda.is_available():
        return [Case("resnet18", 32, 64, "fp32"), Case("resnet50", 8, 64, "fp32")]
    networks = ("resnet18", "resnet50", "resnet101")
    return [
        Case(network, 256, 224, precision, compiled)
        for network in networks
        for precision in ("fp16", "bf16")
        for compiled in (False, True)
    ]


def steps(rounds: int, length: int) -> str:
    """Measure every case, as Markdown.

    Args:
        rounds: each goes through all loops once.
        length: steps of a loop in a round.
    """
    return each_that_fits(cases(), lambda case: measure(case, rounds, length))


def measure(case: Case, rounds: int, length: int) -> str:
    """One case: median time of a step, beside the bare loop's and our baseline's."""
    from tabulate import tabulate

    torch.compiler.reset()  # which gives up compiling a function after some variants of it
    torch.backends.cudnn.benchmark = True  # as training has it
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    contenders: dict[str, Callable[[Case, Batch], Steps]] = {
        REFERENCE: bare,
        PLAIN: lambda case, batch: ours(case, batch, nn.CrossEntropyLoss()),
        RECORDING: lambda case, batch: ours(case, batch, nn.CrossEntropyLoss(), recording=True),
        "pgt, PGT α = 0.25": lambda case, batch: ours(case, batch, PowerGradCrossEntropy(0.25)),
        "timm": timm_step,
    }
    batch = synthetic_batch(case, device)
    memory, loops = {}, {}
    for name, build in contenders.items():
        before = _in_use(device)
        loops[name] = build(case, batch)
        loops[name](3)
        memory[name] = _peak(device) - before
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            times[name].append(timed(loop, length, device))
    rows = []
    for name, measured in times.items():
        middle = statistics.median(measured)
        row = [name, f"{1e3 * middle:.2f}", f"{case.batch / middle:,.0f}"]
        row += [f"{_ratio(measured, times[other]):.3f}" for other in (REFERENCE, PLAIN)]
        if device.type == "cuda":
            row += [f"{memory[name] / 2**30:.1f}", _share(case, middle)]
        rows.append(row)
    headers = ["loop", "ms a step", "images/s", f"× {REFERENCE}", f"× {PLAIN}", "GiB", "of the matrix rate"]
    headers = headers[: len(rows[0])]
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({cpus()} CPUs, {platform.machine()})"
    title = f"{case}; {rounds} rounds of {length} steps in turns, ratios within a round, on {where}"
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return f"{title}\n\n{table}\n\n{_cost(times[RECORDING], times[PLAIN])}"


def _ratio(seconds: list[float], others: list[float]) -> float:
    """Of two loops, by their times of each round."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def _cost(recording: list[float], plain: list[float]) -> str:
    """What the norms cost, by the seconds of a step with and without them in each round."""
    extra = statistics.median(a - b for a, b in zip(recording, plain, strict=True))
    share = extra / EVERY / statistics.median(plain)
    return f"Norms: {1e3 * extra:.2f} ms a record; with one each {EVERY} steps {100 * share:.3f}% of a step."


def bare(case: Case, batch: Batch) -> Steps:
    """What one writes from PyTorch's tutorials."""
    device = batch.images.device
    network = _network(case, device)
    run = torch.compile(network) if case.compiled else network
    sgd = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, weight_decay=DECAY, nesterov=True)
    scaler = torch.amp.GradScaler(device.type, enabled=case.precision == "fp16")
    mixed = case.precision in ("fp16", "bf16")

    def loop(count: int) -> None:
        for _ in range(count):
            with torch.autocast(device.type, batch.images.dtype if mixed else None, enabled=mixed):
                loss = F.cross_entropy(run(batch.images), batch.labels)
            scaler.scale(loss).backward()
            scaler.step(sgd)
            scaler.update()
            sgd.zero_grad(set_to_none=True)

    return loop


def timm_step(case: Case, batch: Batch) -> Steps:
    """What timm's train.py does for a batch with `--amp --channels-last`, its logging apart."""
    from timm.optim import create_optimizer_v2
    from timm.utils import NativeScaler

    device = batch.images.device
    network = _network(case, device)
    run = torch.compile(network) if case.compiled else network
    sgd = create_optimizer_v2(network, opt="sgd", lr=RATE, weight_decay=DECAY, momentum=MOMENTUM)
    criterion = nn.CrossEntropyLoss().to(device)
    mixed = case.precision in ("fp16", "bf16")
    scaler = NativeScaler(device=device.type) if case.precision == "fp16" else None

    def loop(count: int) -> None:
        for _ in range(count):
            with torch.autocast(device.type, batch.images.dtype if mixed else None, enabled=mixed):
                loss = criterion(run(batch.images), batch.labels)
            if scaler is not None:
                scaler(loss, sgd, parameters=network.parameters(), create_graph=False, need_update=True)
            else:
                loss.backward()
                sgd.step()
            sgd.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()  # as train.py does after each update

    return loop


def _in_use(device: torch.device) -> int:
    """Bytes on the GPU, from where `_peak` begins to look."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def _share(case: Case, seconds: float) -> str:
    """Of the chip's matrix rate: multiplications and additions of a forward and a backward pass, in its time."""
    from torch.utils.flop_counter import FlopCounterMode

    name = torch.cuda.get_device_name()
    peak = next((rate for chip, rate in PEAK.items() if chip in name), None)
    if peak is None:
        return "unknown"
    device = torch.device("cuda")
    network, batch = _network(case, device), synthetic_batch(Case(case.network, 1, case.size, "fp32"), device)
    with FlopCounterMode(display=False) as counter:
        network(torch.cat([batch.images] * 2)).sum().backward()
    return f"{100 * counter.get_total_flops() / 2 * case.batch / seconds / peak:.0f}%"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="rounds through all loops (default: 10)")
    parser.add_argument("--steps", type=int, default=10, help="steps of a loop in a round (default: 10)")
    options = parser.parse_args(arguments)
    print(steps(options.rounds, options.steps))


if __name__ == "__main__":
    main()
