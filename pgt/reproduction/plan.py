"""The runs that are still to do, and their cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pgt.reproduction.cost import Speed, Work, work
from pgt.reproduction.formats import Table
from pgt.reproduction.groups import farthest
from pgt.runs.folder import UNFINISHED
from pgt.runs.frame import config_names, dotted, frame, records

DONE, PARTIAL, MISSING = "done", "partial", "missing"

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

UNKNOWN = "speed not known; name one by --images-per-second, --bench or --probe"


@dataclass(frozen=True)
class Item:
    """A run of the plan.

    Attributes:
        experiment, identity: the run's (see `pgt.config.identity`).
        gpus: how many share it.
        status: `done` (a diverged run, too), `partial` or `missing`.
        work: what is left of it.
    """

    experiment: str
    identity: Mapping[str, Any]
    gpus: int
    status: str
    work: Work


def plan(wanted: Iterable[tuple[str, Mapping[str, Any], int]], root: Path) -> list[Item]:
    """The distinct runs among those that are wanted, each once, with what the runs folder has of them.

    Args:
        wanted: experiment and identity of each run, and how many GPUs can share it.
    """
    runs = frame(root)
    names = ["seed", *config_names(runs)]
    runs = farthest(runs.assign(key=[_key(config) for config in records(runs[names])]), by="key")
    known = dict(zip(runs.key, zip(runs.status, runs.epochs, strict=True), strict=True))
    items: dict[str, Item] = {}
    for experiment, identity, gpus in wanted:
        config = dotted(identity)
        key = _key(config | {"seed": identity["seed"]})
        status, epochs = known.get(key, (UNFINISHED, 0))
        if status == UNFINISHED:
            item = Item(experiment, identity, gpus, PARTIAL if epochs else MISSING, work(config, int(epochs)))
        else:
            item = Item(experiment, identity, gpus, DONE, work(config, config["recipe.epochs"]))
        items.setdefault(key, item)
    return list(items.values())


def _key(config: Mapping[str, Any]) -> str:
    """A name for a run without its decoder and its files: the machine that plans need not be the one that trains."""
    left_out = ("data.backend", "data.files")
    return repr(sorted((name, str(v)) for name, v in config.items() if v is not None and name not in left_out))


@dataclass(frozen=True)
class Machine:
    """The machine that runs are trained on.

    Attributes:
        speed: network -> images per second of one GPU; None if it is not known.
        loader: images per second that the machine's CPUs deliver; None if it is not known.
    """

    speed: Callable[[str], Speed | None]
    loader: Speed | None = None

    def seconds(self, item: Item) -> float | None:
        """Wall-clock time of what is left of a run: that of the slower of network and loader. None if not known."""
        network = self._network(item)
        return None if network is None else max(network, self._loader(item))

    def bound(self, item: Item) -> str:
        """The slower part of a run, which the other waits for: `step`, or `loader`."""
        network = self._network(item)
        return "loader" if network is not None and self._loader(item) > network else "step"

    def _network(self, item: Item) -> float | None:
        speed = self.speed(item.identity["model"]["name"])
        if speed is None or item.work.images is None:
            return None
        return item.work.gpu_seconds(speed.images_per_second * item.gpus)

    def _loader(self, item: Item) -> float:
        return item.work.loader_seconds(self.loader.images_per_second) if self.loader else 0.0


def plan_table(items: Sequence[Item], machine: Machine) -> Table:
    """A line for each experiment, a line of totals, and where the speeds are from."""
    rows = [
        (item.experiment, item.status, item.work.steps, item.work.images, machine.seconds(item), item.gpus,
         machine.bound(item))
        for item in items
    ]  # fmt: skip
    columns = ["experiment", "status", "steps", "images", "seconds", "gpus", "bound"]
    runs = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(["steps", "images", "seconds"], float))
    lines = [_line(str(name), members) for name, members in runs.groupby("experiment", sort=False)]
    if len(lines) > 1:
        lines.append(_line("all", runs))
    gpus = " or ".join(map(str, sorted(runs.gpus.unique())))
    said = (
        f"{len(items)} distinct run{'s' if len(items) > 1 else ''}, each on {gpus} GPU{'s' if gpus != '1' else ''}, "
        "one after the other. GPU-hours: of all GPUs together. Bound: the slower part, step or loader. "
        f"Checkpoints: {sum(item.work.disk for item in items) / 1e9:.1f} GB."
    )
    return Table("", HEADERS, lines, ["\n".join([said, *_sources(items, machine)])])


def _line(name: str, runs: pd.DataFrame) -> list[str]:
    unsized = " + ?" if runs.images.isna().any() else ""
    untimed = " + ?" if runs.seconds.isna().any() else ""
    return [
        name,
        str(len(runs)),
        *(str((runs.status == status).sum()) for status in (DONE, PARTIAL, MISSING)),
        f"{runs.steps.sum():,.0f}{unsized}",
        f"{runs.images.sum():,.0f}{unsized}",
        f"{_short((runs.seconds * runs.gpus).sum() / 3600)}{untimed}",
        f"{_short(runs.seconds.sum() / 3600)}{untimed}",
        ", ".join(sorted(runs.bound.unique())),
    ]


def _short(hours: float) -> str:
    """Hours with one decimal; if there is less than one, with two digits."""
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
