"""The runs that are still to do, and their cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pgt.config import sharing
from pgt.config.compose import compose_all
from pgt.config.identity import identity
from pgt.config.rules import check_size, without_data
from pgt.reproduction.cost import (
    Speed,
    Work,
    bench_speeds,
    image_size,
    images_at_once,
    memory,
    published_speed,
    work,
)
from pgt.reproduction.formats import Column, Note, Table, render, table
from pgt.reproduction.groups import farthest
from pgt.reproduction.published import IMAGE_SIZE
from pgt.runs.folder import FINISHED, UNFINISHED, read_starts
from pgt.runs.frame import config_names, dotted, frame, records
from pgt.runs.labels import experiment_name

DONE, PARTIAL, MISSING = "done", "partial", "missing"

UNKNOWN = f"speed not known; name one by --images-per-second, --probe, or for {IMAGE_SIZE} pixels --bench"


@dataclass(frozen=True)
class Item:
    """A run of the plan.

    Attributes:
        experiment: of the run.
        config: the values that change its numbers, by dotted name, without the seed.
        gpus: number of GPUs that share the run.
        status: `done` (a diverged run, too), `partial` or `missing`.
        work: what is left of it.
    """

    experiment: str
    config: Mapping[str, Any]
    gpus: int
    status: str
    work: Work


def command(
    overrides: Sequence[str],
    *,
    root: Path,
    gpus: int,
    gpu: str,
    images_per_second: float | None,
    bench: Iterable[Path],
    probe: Callable[[Iterable[tuple[Mapping[str, Any], int]]], dict[str, Speed]] | None,
    loader_images_per_second: float | None,
) -> None:
    """Print the plan of a command line of `pgt train -m`.

    Args:
        overrides: the command line.
        root: the runs folder.
        gpus: number of GPUs that share a run, if its batch can be divided among them.
        gpu: name of a card; its published speeds are used for networks whose speed is not stated, measured or recorded
            by a finished run.
        images_per_second: stated speed of one GPU, for every network.
        bench: files of the benchmarks, with speeds measured on images of `IMAGE_SIZE` pixels.
        probe: (config of each run and GPUs that share it) -> the speed of each network, measured now; None: nothing
            is measured.
        loader_images_per_second: stated speed of the loader.

    Raises:
        InputError: an override, a file or the card cannot be used.
    """
    with without_data():
        configs = compose_all(overrides, multirun=True)
    for config in configs:
        check_size(config)
    wanted = [(experiment_name(c.experiment), identity(c), sharing.sensible(c.recipe, gpus)) for c in configs]
    runs = frame(root)
    items = plan(wanted, runs)
    benched = {name: speed for path in bench for name, speed in bench_speeds(path).items()}
    probed = probe((item.config, item.gpus) for item in items) if probe else {}
    loader = Speed(loader_images_per_second, "stated") if loader_images_per_second else benched.get("loader")
    stated = Speed(images_per_second, "stated") if images_per_second else None
    names = dict.fromkeys(item.config["model.name"] for item in items)
    usual = names.keys() - {item.config["model.name"] for item in items if image_size(item.config) != IMAGE_SIZE}
    trained = trained_speeds(items, runs, root)
    speeds = {
        name: stated
        or probed.get(name)
        or (benched.get(name) if name in usual else None)
        or trained.get(name)
        or (published_speed(name, gpu) if name in usual else None)
        for name in names
    }
    print(render([plan_table(items, speeds, loader)], "markdown"))


def plan(wanted: Iterable[tuple[str, Mapping[str, Any], int]], runs: pd.DataFrame) -> list[Item]:
    """The distinct runs among those that are wanted, each once, with what the runs folder has of them.

    Args:
        wanted: experiment and identity (nested, with the seed) of each run, and how many GPUs can share it.
        runs: those of the runs folder.
    """
    names = ["seed", *config_names(runs)]
    keys = [_key(name, config) for name, config in zip(runs.experiment, records(runs[names]), strict=True)]
    runs = farthest(runs.assign(key=keys), by="key")
    known = dict(zip(runs.key, zip(runs.status, runs.epochs, strict=True), strict=True))
    items: dict[str, Item] = {}
    for experiment, values, gpus in wanted:
        config = dotted(values)
        key = _key(experiment, config | {"seed": values["seed"]})
        status, epochs = known.get(key, (UNFINISHED, 0))
        if status != UNFINISHED:
            status, epochs = DONE, config["recipe.epochs"]
        else:
            status = PARTIAL if epochs else MISSING
        items.setdefault(key, Item(experiment, config, gpus, status, work(config, int(epochs))))
    return list(items.values())


def trained_speeds(items: Iterable[Item], runs: pd.DataFrame, root: Path) -> dict[str, Speed]:
    """The speed of each network on one device, as the newest finished run of its kind has recorded it.

    Runs of one kind have the same network, image size, precision and number of devices. A network whose planned runs
    are of several kinds has no such speed.
    """
    kinds: dict[str, set[str]] = {}
    for item in items:
        kinds.setdefault(item.config["model.name"], set()).add(_kind(item.config, item.gpus))
    done = [run for run in records(runs) if run["status"] == FINISHED and run["images_per_second"]]
    newest = {_kind(run, run["world_size"]): run for run in sorted(done, key=lambda run: run["finished"] or "")}
    found = {}
    for name, wanted in kinds.items():
        run = newest.get(min(wanted)) if len(wanted) == 1 else None
        if run is not None:
            starts = read_starts(run["run"])
            device = f" ({starts[-1]['device']})" if starts else ""
            source = f"measured in {run['run'].relative_to(root)}{device}"
            found[name] = Speed(run["images_per_second"] / run["world_size"], source)
    return found


def _kind(config: Mapping[str, Any], devices: int) -> str:
    """A name for what a step's speed depends on."""
    network = sorted((key, value) for key, value in config.items() if key.startswith("model.") and value is not None)
    own = [(key, value) for key, value in network if key != "model.interpolation"]
    return repr((own, image_size(config), config["trainer.precision"], devices))


def _key(experiment: str, config: Mapping[str, Any]) -> str:
    """A key that is the same for runs of an experiment that differ in decoder and file list alone: a plan may be made
    elsewhere."""
    left_out = ("data.backend", "data.files")
    values = sorted((name, str(v)) for name, v in config.items() if v is not None and name not in left_out)
    return f"{experiment} {values}"


def seconds(item: Item, speed: Speed | None, loader: Speed | None) -> dict[str, float]:
    """Wall-clock seconds of what is left of a run: of its steps (`step`), and of the loader, which works meanwhile.

    Args:
        speed: of the network on one GPU; None if it is not known, and the time is NaN, as for data of unknown size.
        loader: what the machine's CPUs deliver; None if it is not known, and they count as fast enough.
    """
    if speed is None or item.work.images is None:
        return {"step": math.nan}
    waiting = item.work.loader_seconds(loader.images_per_second) if loader else 0.0
    return {"step": item.work.gpu_seconds(speed.images_per_second * item.gpus), "loader": waiting}


def _memory(items: Iterable[Item]) -> list[str]:
    """A sentence for each network and size of step that needs at least a GiB of a GPU's memory, the largest first."""
    needs: dict[str, float] = {}
    for config, images in ((item.config, images_at_once(item.config, item.gpus)) for item in items):
        step = f"{images} images of {image_size(config)} pixels in {config['trainer.precision']}"
        needs[f"{config['model.name']}, {step}"] = memory(config, images) / 2**30
    large = [(need, what) for what, need in needs.items() if need >= 1]  # NaN is not
    return [f"{what}: about {need:.1f} GiB of a GPU's memory" for need, what in sorted(large, reverse=True)]


def _total(values: pd.Series[float], text: Callable[[float], str], kind: Literal["sum", "max"] = "sum") -> str:
    """The sum or the largest of what is known, and a question mark if something is not."""
    return text(values.fillna(0).agg(kind)) + (" + ?" if values.isna().any() else "")


def _hours(hours: float) -> str:
    """Hours with one decimal; if there is less than one, with two digits."""
    return f"{hours:,.1f}" if hours >= 1 or hours == 0 else f"{hours:.2g}"


COLUMNS: Sequence[Column[pd.DataFrame]] = (
    ("Experiment", lambda runs: runs.experiment.iloc[0]),
    ("Runs", lambda runs: str(len(runs))),
    ("Done", lambda runs: str((runs.status == DONE).sum())),
    ("Partial", lambda runs: str((runs.status == PARTIAL).sum())),
    ("Missing", lambda runs: str((runs.status == MISSING).sum())),
    ("Steps left", lambda runs: _total(runs.steps, "{:,.0f}".format)),
    ("Images left", lambda runs: _total(runs.images, "{:,.0f}".format)),
    ("GPU-hours", lambda runs: _total(runs.seconds * runs.gpus / 3600, _hours)),
    ("Hours", lambda runs: _total(runs.seconds / 3600, _hours)),
    ("Bound", lambda runs: ", ".join(sorted(runs.bound.unique()))),
)
"""Header and cell of each column, for the runs of a line."""


def plan_table(items: Sequence[Item], speeds: Mapping[str, Speed | None], loader: Speed | None) -> Table:
    """A line for each experiment, a line of totals, where the speeds are from, and the memory that is needed.

    Args:
        speeds: of each network on one GPU; None if it is not known.
        loader: what the machine's CPUs deliver; None if it is not known.
    """
    parts = [seconds(item, speeds[item.config["model.name"]], loader) for item in items]
    runs = pd.DataFrame(
        {
            "experiment": [item.experiment for item in items],
            "status": [item.status for item in items],
            "steps": pd.Series([item.work.steps for item in items], dtype=float),
            "images": pd.Series([item.work.images for item in items], dtype=float),
            "disk": pd.Series([item.work.disk for item in items], dtype=float),
            "more_disk": pd.Series([item.work.more_disk for item in items], dtype=float),
            "gpus": [item.gpus for item in items],
            "seconds": [max(part.values()) for part in parts],
            "bound": [max(part, key=part.__getitem__) for part in parts],
        }
    )
    lines = [members for _, members in runs.groupby("experiment", sort=False)]
    if len(lines) > 1:
        lines.append(runs.assign(experiment="all"))
    gpus = " or ".join(map(str, sorted(runs.gpus.unique())))
    said = (
        f"{len(items)} distinct run{'s' if len(items) > 1 else ''}, each on {gpus} GPU{'s' if gpus != '1' else ''}, "
        "one after the other. GPU-hours: of all GPUs together. Bound: the slower part, step or loader. "
        f"Checkpoints: {_total(runs.disk / 1e9, '{:.1f}'.format)} GB, and "
        f"{_total(runs.more_disk / 1e9, '{:.1f}'.format, 'max')} GB more while a run trains."
    )
    sources = [
        f"{name}: {speed.images_per_second:,.0f} images/s a device, {speed.source}" if speed else f"{name}: {UNKNOWN}"
        for name, speed in speeds.items()
    ]
    if loader:
        sources.append(f"loader: {loader.images_per_second:,.0f} images/s, {loader.source}")
    if needs := _memory(items):
        sources += [
            *needs,
            "trainer.checkpoint_activations=true needs less memory and more time, with the same numbers",
        ]
    return table(lines, COLUMNS, notes=[Note(said, sources)])
