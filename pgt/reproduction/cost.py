"""What a run costs: images, GPU-hours, disk."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgt.config.resources import published_dir
from pgt.core.errors import InputError
from pgt.core.registry import DATA_SETS, PARAMETERS

SIZE = 224
"""Pixels of ImageNet's images, a side."""

FORWARD_SHARE = 1 / 3
"""Of a training step's time that an image of the test set takes: the backward pass costs about two forward ones."""

REFERENCE_GPU = "RTX3090"
"""The one card for which every network's speed is published."""

DEFAULT_GPU = "V100-16GB"
"""The paper's."""


@dataclass(frozen=True)
class Speed:
    """Training speed of one network on one GPU, images per second, and where the figure is from."""

    images_per_second: float
    source: str


def published_speed(model: str, gpu: str) -> Speed | None:
    """A network's published speed on a card in fp16, or the estimate that the reference card's ratios give.

    Args:
        model: name of the config group; a network without batch norm counts as the one with it.
        gpu: as speeds.csv names it.

    Raises:
        InputError: an unknown card.
    """
    known = _published()
    cards = sorted({card for _, card in known})
    if gpu not in cards:
        raise InputError(f"no speed of a {gpu} is published: choose one of {', '.join(cards)}")
    name = model.removesuffix("_nobn")
    if (name, gpu) in known:
        speed, source = known[name, gpu]
        return Speed(speed, f"published for {gpu}: {source}")
    if (name, REFERENCE_GPU) not in known:
        return None
    anchor = next(other for other, card in known if card == gpu)
    ratio = known[name, REFERENCE_GPU][0] / known[anchor, REFERENCE_GPU][0]
    speed, source = known[anchor, gpu]
    return Speed(
        speed * ratio, f"estimated for {gpu}: {anchor}'s ({source}) x {ratio:.2f}, the ratio on {REFERENCE_GPU}"
    )


def _published() -> dict[tuple[str, str], tuple[float, str]]:
    """(model, card) -> (images per second and GPU, source): with several GPUs where that is published."""
    found: dict[tuple[str, str], tuple[float, str]] = {}
    with (published_dir() / "speeds.csv").open(newline="") as file:
        for line in sorted(csv.DictReader(file), key=lambda line: int(line["gpus"])):
            if line["precision"] == "amp-fp16":
                found[line["model"], line["gpu"]] = float(line["images_per_s_per_gpu"]), line["source"]
    return found


def bench_speeds(path: Path) -> dict[str, Speed]:
    """What printed tables say: of `pgt bench step` each network's fastest PGT step on images of `SIZE` pixels, and of
    `pgt bench loader` the fastest of ours, by the name `loader`.

    Raises:
        InputError: no such table in the file.
    """
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text: give a table that `pgt bench` printed") from None
    found: dict[str, Speed] = {}
    network, source, column = "loader", path.name, 0
    for line in text.splitlines():
        if title := re.match(r"(\w+), \d+ x (\d+) x \d+, [^;]*", line):
            network, source = (title[1] if int(title[2]) == SIZE else ""), f"{path.name}: {title[0]}"
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        column = next((i for i, cell in enumerate(cells) if cell.startswith("images/s")), column)
        if not network or not cells[0].startswith(("pgt, PGT", "pgt, DALI")) or column >= len(cells):
            continue
        speed = float(cells[column].replace(",", ""))
        if network not in found or speed > found[network].images_per_second:
            found[network] = Speed(speed, source)
    if not found:
        raise InputError(f"{path} has no table of `pgt bench step` on images of {SIZE} pixels or of `pgt bench loader`")
    return found


@dataclass(frozen=True)
class Work:
    """What there is to do in a run.

    Attributes:
        steps, images: of training over all epochs; None for a data set whose size is not known here.
        evaluated: test images over all evaluations.
        disk: bytes of checkpoints.
    """

    steps: int | None
    images: int | None
    evaluated: int
    disk: float

    def gpu_seconds(self, speed: float) -> float:
        """Time of one GPU at `speed` training images per second."""
        return ((self.images or 0) + FORWARD_SHARE * self.evaluated) / speed

    def loader_seconds(self, speed: float) -> float:
        """Time of the CPUs at `speed` images per second, whatever they are for."""
        return ((self.images or 0) + self.evaluated) / speed


def work(identity: Mapping[str, Any], epochs_done: int = 0) -> Work:
    """What is left of a run with these config values (see `pgt.config.identity`)."""
    data, recipe = identity["data"], identity["recipe"]
    train, test = DATA_SETS[data["name"]].samples or (data.get("num_samples"), 0)
    left = recipe["epochs"] - epochs_done
    evaluations = math.ceil(left / identity["trainer"]["evaluate_every"])
    disk = 12 * PARAMETERS.get(identity["model"]["name"], 0)  # float32: weights, momentum, the best weights
    if train is None:
        return Work(None, None, 0, disk)
    batches = train // recipe["global_batch"] if data["drop_last"] else math.ceil(train / recipe["global_batch"])
    return Work(batches * left, batches * left * recipe["global_batch"], test * evaluations, disk)
