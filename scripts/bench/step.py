"""Speed of our training step, with and without recorded norms, beside a bare PyTorch loop and timm's step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pgt.core.types import Batch
from pgt.methods import PowerGradCrossEntropy
from pgt.runs.norms import Floats
from pgt.tools.probe import (
    DECAY,
    MOMENTUM,
    RATE,
    Case,
    Steps,
    build_network,
    first_device,
    seconds_a_step,
    synthetic_batch,
    training_steps,
)
from scripts.bench.results import Result, each_that_fits, entry, in_turns, machine, options, show, table

REFERENCE, PLAIN, RECORDING = "bare loop", "pgt, baseline", "pgt, norms each step"
EVERY = 50
"""Steps between two records of norms for which their cost is stated."""
PEAK = {
    "H200 NVL": 836e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 836e12,
    "H100": 989e12,
    "A100": 312e12,
    "V100-PCIE": 112e12,
    "V100": 125e12,
}
"""Dense 16-bit matrix operations a second, by the first of these that is in the card's name; from data sheets."""


class Nowhere:
    """A file of norms that drops its records."""

    def write(self, step: int, values: Floats) -> None:
        pass

    def sync(self) -> None:
        pass


def cases() -> list[Case]:
    """Return ResNet-18 and -50 on small images for the CPU; for a GPU, the paper's networks at its batch."""
    if not torch.cuda.is_available():
        return [Case("resnet18", 32, 64, "fp32"), Case("resnet50", 8, 64, "fp32")]
    networks = ("resnet18", "resnet50", "resnet101")
    return [
        Case(network, 256, 224, precision, compiled)
        for network in networks
        for precision in ("fp16", "bf16")
        for compiled in (False, True)
    ]


def measure(case: Case, rounds: int, length: int, results: list[Result]) -> str:
    """Measure every loop on one case.

    Args:
        case: what is trained.
        rounds: each goes through all loops once.
        length: steps of a loop in a round.
        results: takes the result of each loop.

    Returns:
        A Markdown table: median time of a step, beside the bare loop's and our baseline's.
    """
    torch.compiler.reset()  # torch stops compiling a function after some variants of it
    torch.backends.cudnn.benchmark = True  # as in training
    device = first_device()
    contenders: dict[str, Callable[[Case, Batch], Steps]] = {
        REFERENCE: bare,
        PLAIN: lambda case, batch: training_steps(case, batch, nn.CrossEntropyLoss()),
        RECORDING: lambda case, batch: training_steps(case, batch, nn.CrossEntropyLoss(), Nowhere()),
        "pgt, PGT α = 0.25": lambda case, batch: training_steps(case, batch, PowerGradCrossEntropy(0.25)),
        "timm": timm_step,
    }
    batch = synthetic_batch(case, device)
    memory, loops = {}, {}
    for name, build in contenders.items():
        before = _in_use(device)
        loops[name] = build(case, batch)
        loops[name](3)  # cuDNN tries its algorithms in the first loop, each with a workspace ...
        _in_use(device)  # ... which are no part of a step's peak
        loops[name](1)
        memory[name] = _peak(device) - before
    for loop in loops.values():  # building a compiled one has made torch forget those before it
        loop(3)
    times = in_turns(rounds, {name: partial(seconds_a_step, loop, length, device) for name, loop in loops.items()})
    rows = []
    for name, measured in times.items():
        middle = statistics.median(measured)
        speed = case.batch / middle
        results.append(entry("step", asdict(case), name, machine(device), images_per_second=speed))
        row = [name, f"{1e3 * middle:.2f}", f"{speed:,.0f}"]
        row += [f"{_ratio(measured, times[other]):.3f}" for other in (REFERENCE, PLAIN)]
        if device.type == "cuda":
            row += [f"{memory[name] / 2**30:.1f}", _share(case, middle)]
        rows.append(row)
    headers = ["loop", "ms a step", "images/s", f"× {REFERENCE}", f"× {PLAIN}", "GiB", "of the matrix rate"]
    title = f"{case}; {rounds} rounds of {length} steps in turns, ratios within a round, on {machine(device)}"
    return f"{title}\n\n{table(rows, headers)}\n\n{_cost(times[RECORDING], times[PLAIN])}"


def _ratio(seconds: list[float], others: list[float]) -> float:
    """Return the median ratio of two loops' times within a round."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def _cost(recording: list[float], plain: list[float]) -> str:
    """State the cost of recording norms, from the seconds of a step with and without them in each round."""
    extra = statistics.median(a - b for a, b in zip(recording, plain, strict=True))
    share = extra / EVERY / statistics.median(plain)
    return f"Norms: {1e3 * extra:.2f} ms a record; with one each {EVERY} steps {100 * share:.3f}% of a step."


def bare(case: Case, batch: Batch) -> Steps:
    """Return steps as PyTorch's tutorials write them."""
    device = batch.images.device
    network = build_network(case, device)
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
    """Return the steps of timm's train.py with `--amp --channels-last`, without its logging."""
    device = batch.images.device
    network = build_network(case, device)
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
    """Return the bytes in use on the GPU, and let `_peak` look from now on."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def _share(case: Case, seconds: float) -> str:
    """Return the share of the GPU's matrix rate: the operations of a forward and a backward pass over their time."""
    name = torch.cuda.get_device_name()
    peak = next((rate for chip, rate in PEAK.items() if chip in name), None)
    if peak is None:
        return "unknown"
    device = torch.device("cuda")
    network, batch = build_network(case, device), synthetic_batch(Case(case.network, 1, case.size, "fp32"), device)
    with FlopCounterMode(display=False) as counter:
        network(torch.cat([batch.images] * 2)).sum().backward()
    return f"{100 * counter.get_total_flops() / 2 * case.batch / seconds / peak:.0f}%"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = options(__doc__, rounds=10)
    parser.add_argument("--steps", type=int, default=10, help="steps of a loop in a round (default: 10)")
    given, results = parser.parse_args(arguments), list[Result]()
    text = each_that_fits(cases(), lambda case: measure(case, given.rounds, given.steps, results))
    show(text, results, given.json)


if __name__ == "__main__":
    main()
