"""The cost of a run: images, GPU-hours, disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pgt.core.errors import InputError
from pgt.core.registry import ACTIVATIONS, DATA_SETS, PARAMETERS
from pgt.reproduction import published
from pgt.reproduction.published import IMAGE_SIZE

FORWARD_SHARE = 1 / 3
"""The share of a training step's time that a test image takes: a backward pass costs about two forward passes."""

REFERENCE_GPU = "RTX3090"
"""The only card for which every network's speed is published."""

DEFAULT_GPU = "V100-16GB"
"""The paper's card."""

BEST, CHECKPOINT = 4, 8
"""Bytes a parameter, in float32: of the best weights, and of a checkpoint, which has weights and momentum."""


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


@cache
def _published() -> dict[tuple[str, str], tuple[float, str]]:
    """(model, card) -> (images per second of a GPU, source): of the run on the most GPUs that is published."""
    found: dict[tuple[str, str], tuple[float, str]] = {}
    for line in sorted(published.read("speeds"), key=lambda line: int(line["gpus"])):
        if line["precision"] == "amp-fp16":
            found[line["model"], line["gpu"]] = float(line["images_per_s_per_gpu"]), line["source"]
    return found


def bench_speeds(path: Path) -> dict[str, Speed]:
    """Read the speeds that scripts/bench/step.py or loader.py wrote with `--json`.

    The file is a list of mappings with `benchmark` (`step` or `loader`), `case` (of a step `network`, `batch`, `size`,
    `precision` and `compiled`), `loop`, `images_per_second` and `machine`.

    Returns:
        Each network's fastest PGT step on images of `IMAGE_SIZE` pixels, and the fastest of our loaders as `loader`.

    Raises:
        InputError: the file is not such a list, or has neither.
    """
    found: dict[str, Speed] = {}
    try:
        for line in json.loads(path.read_text()):
            name, what = _benched(line)
            speed = Speed(float(line["images_per_second"]), f"{path.name}: {what}; {line['machine']}")
            if name and (name not in found or speed.images_per_second > found[name].images_per_second):
                found[name] = speed
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} has no measured speeds ({type(error).__name__}): give a file that scripts/bench/step.py or "
            "loader.py wrote with --json"
        ) from None
    if not found:
        raise InputError(f"{path} has no speed of a PGT step on images of {IMAGE_SIZE} pixels, and none of our loaders")
    return found


def _benched(line: Mapping[str, Any]) -> tuple[str, str]:
    """The network whose step was measured, or `loader`, and a description; both empty for another library's step."""
    case, loop = line["case"], line["loop"]
    if line["benchmark"] == "step" and case["size"] == IMAGE_SIZE and loop.startswith("pgt, PGT"):
        compiled = ", compiled" if case["compiled"] else ""
        what = f"{case['network']}, {case['batch']} x {IMAGE_SIZE} x {IMAGE_SIZE}, {case['precision']}{compiled}"
        return case["network"], what
    return ("loader", loop) if line["benchmark"] == "loader" and loop.startswith("pgt, ") else ("", "")


@dataclass(frozen=True)
class Work:
    """The work that a run still has to do.

    Attributes:
        steps, images: of training over all epochs; None if the size of the data set is not known here.
        evaluated: test images over all evaluations.
        disk: bytes of the checkpoints that a run leaves, `best.pt` and `last.pt`; None if the network is not known.
        more_disk: further bytes while it trains (`previous.pt`, the checkpoint that is being written); None likewise.
    """

    steps: int | None
    images: int | None
    evaluated: int
    disk: int | None
    more_disk: int | None

    def gpu_seconds(self, speed: float) -> float:
        """The time that one GPU takes at `speed` training images per second."""
        return ((self.images or 0) + FORWARD_SHARE * self.evaluated) / speed

    def loader_seconds(self, speed: float) -> float:
        """The time that the CPUs take to deliver all images at `speed` images per second."""
        return ((self.images or 0) + self.evaluated) / speed


def work(config: Mapping[str, Any], epochs_done: int = 0) -> Work:
    """Compute the work that a run still has to do.

    Args:
        config: its values by dotted name (see `pgt.runs.frame`).
    """
    made = config.get("data.num_samples")  # of synthetic images, which are tested on, too
    train, test = DATA_SETS[config["data.name"]].samples or (made, made or 0)
    batch, epochs, every = config["recipe.global_batch"], config["recipe.epochs"], config["trainer.evaluate_every"]
    left = epochs - epochs_done
    evaluations = math.ceil(epochs / every) - epochs_done // every if left else 0
    parameters = PARAMETERS.get(config["model.name"])
    disk = parameters and parameters * (BEST + CHECKPOINT)
    more_disk = parameters and 2 * CHECKPOINT * parameters if left else 0
    if train is None:
        return Work(None, None, 0, disk, more_disk)
    batches = train // batch if config["data.drop_last"] else math.ceil(train / batch)
    return Work(batches * left, batches * left * batch, test * evaluations, disk, more_disk)


def memory(config: Mapping[str, Any], images: int) -> float:
    """Bytes of a GPU's memory for a training step; NaN if the size of the network's activations is not known.

    They are activations, and weights, gradients and momentum in float32. Workspaces of cuDNN and the loader's buffers
    are not included.

    Args:
        config: the run's values by dotted name (see `pgt.runs.frame`).
        images: that pass through the network at once.
    """
    name = config["model.name"]
    if name not in ACTIVATIONS or config.get("model.stem", "standard") != "standard":
        return math.nan
    size_of_value = 1 if config["trainer.precision"] in ("bf16", "fp16") else 2
    pixels = (image_size(config) / IMAGE_SIZE) ** 2
    return images * ACTIVATIONS[name] * size_of_value * pixels + 12 * PARAMETERS[name]


def image_size(config: Mapping[str, Any]) -> int:
    """Pixels a side of a run's images."""
    return int(config.get("data.image_size") or DATA_SETS[config["data.name"]].image_size or 0)


def images_at_once(config: Mapping[str, Any], gpus: int) -> int:
    """Images that pass through a run's network at once: of a group, or of a GPU if the recipe has no groups.

    Args:
        config: the run's values by dotted name (see `pgt.runs.frame`).
        gpus: number that share the batch.
    """
    return int(config["recipe.local_batch"] or config["recipe.global_batch"] // gpus)
