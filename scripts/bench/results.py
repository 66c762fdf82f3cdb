"""The parts that all benchmarks share: the machine's name, cases that may not fit, and results as JSON."""

from __future__ import annotations

import argparse
import gc
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from tabulate import tabulate

from pgt.core.files import write_json
from pgt.core.machine import cpus

T = TypeVar("T")
Result = dict[str, Any]
"""`benchmark`, `case` (a mapping), `loop`, `machine`, and `images_per_second` or, for a loss, `milliseconds`.
A loader's also has `host_milliseconds`, the training thread's CPU time a batch, a method's `mebibytes`, which a step
keeps for its backward pass."""


def machine(device: torch.device) -> str:
    """Return the name of the GPU, or the number and kind of CPUs."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({cpus()} CPUs, {platform.machine()})"


def each_that_fits(cases: Iterable[T], measure: Callable[[T], str]) -> str:
    """Measure each case; return the measurements as Markdown, with a line for each case too large for the GPU."""
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


def table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Return a Markdown table, with as many of the headers as the rows have cells."""
    return tabulate(rows, headers[: len(rows[0])], tablefmt="github", disable_numparse=True)


def entry(benchmark: str, case: Mapping[str, Any], loop: str, machine: str, **figure: float) -> Result:
    """Return one result, its figure with four significant digits."""
    rounded = {name: float(f"{value:.4g}") for name, value in figure.items()}
    return {"benchmark": benchmark, "case": dict(case), "loop": loop, **rounded, "machine": machine}


def in_turns(rounds: int, timed: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Time the contenders in turns, since the machine's speed drifts: one value of each in every round."""
    found: dict[str, list[T]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, time in timed.items():
            found[name].append(time())
    return found


def options(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """The parser of a benchmark's command line, with `--rounds` and `--json FILE`.

    Args:
        doc: the benchmark's docstring.
        rounds: unless the command line says otherwise.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds through all of them (default: {rounds})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there, as JSON")
    return parser


def show(text: str, results: Sequence[Result], path: Path | None) -> None:
    """Print the Markdown and, if a path is given, write the results to it."""
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, list(results))
