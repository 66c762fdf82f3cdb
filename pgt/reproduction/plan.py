"""What runs there are to do, and what they cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgt.config.identity import run_id
from pgt.reproduction.cost import Speed, Work, work
from pgt.runs.folder import DIVERGED, FINISHED, Summary, find, progress

DONE, PARTIAL, MISSING = "done", "partial", "missing"

Job = tuple[str, Mapping[str, Any], int]
"""Experiment and identity of a run, and how many GPUs can share it."""


@dataclass(frozen=True)
class Item:
    """A run of the plan.

    Attributes:
        experiment, identity: whose it is.
        gpus: that share it.
        status: `done` (diverged runs included), `partial` or `missing`.
        work: what is left of it.
    """

    experiment: str
    identity: Mapping[str, Any]
    gpus: int
    status: str
    work: Work


def plan(jobs: Sequence[Job], root: Path) -> list[Item]:
    """The distinct runs among the jobs, each once, with what the runs folder has of them."""
    farthest_last = sorted((summary for _, summary in find(root)), key=progress)
    known = {_name(summary.identity): summary for summary in farthest_last}
    distinct = {_name(identity): (experiment, identity, gpus) for experiment, identity, gpus in reversed(jobs)}
    return [_item(*job, known.get(name)) for name, job in reversed(distinct.items())]


def _name(identity: Mapping[str, Any]) -> str:
    """Of a run whatever decodes its images: this machine need not be the one that trains."""
    data = {key: value for key, value in identity["data"].items() if key != "backend"}
    return run_id({**identity, "data": data})


def _item(experiment: str, identity: Mapping[str, Any], gpus: int, found: Summary | None) -> Item:
    epochs = found.epochs if found else 0
    if found and found.status in (FINISHED, DIVERGED):
        return Item(experiment, identity, gpus, DONE, work(identity, identity["recipe"]["epochs"]))
    return Item(experiment, identity, gpus, PARTIAL if epochs else MISSING, work(identity, epochs))


@dataclass(frozen=True)
class Machine:
    """What the runs go through on.

    Attributes:
        speed: network -> images per second of one GPU, where known.
        loader: images per second that the machine's CPUs deliver; None where that is not known.
    """

    speed: Callable[[str], Speed | None]
    loader: Speed | None = None

    def seconds(self, item: Item) -> float | None:
        """Wall-clock time of what is left of a run: of the slower of network and loader."""
        network = self._network(item)
        return None if network is None else max(network, self._loader(item))

    def bound(self, item: Item) -> str:
        """What a run waits for: `step`, or `loader`."""
        network = self._network(item)
        return "loader" if network is not None and self._loader(item) > network else "step"

    def _network(self, item: Item) -> float | None:
        speed = self.speed(item.identity["model"]["name"])
        if speed is None or item.work.images is None:
            return None
        return item.work.gpu_seconds(speed.images_per_second * item.gpus)

    def _loader(self, item: Item) -> float:
        return item.work.loader_seconds(self.loader.images_per_second) if self.loader else 0.0


UNKNOWN = "speed not known; name one by --images-per-second, --bench or --probe"

HEADERS = (
    "Experiment",
    "Runs",
    "Done",
    "Partial",
    "Missing",
    "Steps left",
    "Images left",
    "GPU-hours",
    "Hours",
    "Bound",
)


def render(items: Sequence[Item], machine: Machine) -> str:
    """A line for each experiment, a line of totals, and where the speeds are from."""
    from tabulate import tabulate

    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.experiment].append(item)
    table = [_line(name, members, machine) for name, members in groups.items()]
    if len(groups) > 1:
        table.append(_line("all", items, machine))
    disk = sum(item.work.disk for item in items)
    gpus = sorted({item.gpus for item in items})
    runs = f"{len(items)} distinct run{'s' if len(items) > 1 else ''}, each on {' or '.join(map(str, gpus))} GPU"
    said = (
        f"{runs}{'s' if gpus != [1] else ''}, one after the other. GPU-hours: of all GPUs together. Bound: what a "
        f"run waits for. Checkpoints: {disk / 1e9:.1f} GB."
    )
    drawn = tabulate(table, HEADERS, tablefmt="github", disable_numparse=True)
    return "\n".join([drawn, "", said, *_sources(items, machine)])


def _line(name: str, items: Sequence[Item], machine: Machine) -> list[str]:
    seconds = [machine.seconds(item) for item in items]
    known = [s for s in seconds if s is not None]
    hours = sum(known) / 3600
    gpu_hours = sum(s * item.gpus for s, item in zip(seconds, items, strict=True) if s is not None) / 3600
    unsized = " + ?" if any(item.work.images is None for item in items) else ""
    untimed = " + ?" if len(known) < len(items) else ""
    images = sum(item.work.images or 0 for item in items)
    steps = sum(item.work.steps or 0 for item in items)
    count = {status: sum(item.status == status for item in items) for status in (DONE, PARTIAL, MISSING)}
    bounds = sorted({machine.bound(item) for item in items})
    return [
        name,
        str(len(items)),
        *(str(count[status]) for status in (DONE, PARTIAL, MISSING)),
        f"{steps:,}{unsized}",
        f"{images:,}{unsized}",
        f"{_short(gpu_hours)}{untimed}",
        f"{_short(hours)}{untimed}",
        ", ".join(bounds),
    ]


def _short(hours: float) -> str:
    """Two digits of what is short."""
    return f"{hours:,.1f}" if hours >= 1 or hours == 0 else f"{hours:.2g}"


def _sources(items: Sequence[Item], machine: Machine) -> list[str]:
    found = []
    for model in dict.fromkeys(item.identity["model"]["name"] for item in items):
        speed = machine.speed(model)
        said = f"{speed.images_per_second:,.0f} images/s a device, {speed.source}" if speed else UNKNOWN
        found.append(f"- {model}: {said}")
    if machine.loader:
        found.append(f"- loader: {machine.loader.images_per_second:,.0f} images/s, {machine.loader.source}")
    return found
