"""A run's network as a folder that timm and the Hugging Face Hub read."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pgt import data
from pgt.core.errors import InputError
from pgt.core.files import atomic_write
from pgt.core.registry import DATA_SETS
from pgt.data import digits
from pgt.data.delivery import DEVIATION, MEAN
from pgt.data.reader import EVALUATION_RESIZE
from pgt.runs.folder import FINISHED
from pgt.tools import card, networks, weights
from pgt.tools.weights import Source

FILES = {"model.safetensors", "config.json", "README.md"}
CIFAR_AND_FOLDERS = (*data.CIFAR, *data.FOLDERS)


def command(run: Path, which: str, output: Path | None, calibrate: bool) -> None:
    """Export and say where to."""
    folder = output or run / ("export-calibrated" if calibrate else "export")
    export(run, which, folder, calibrate)
    print(f"written to {folder}")


def export(run: Path, which: str, folder: Path, calibrate: bool) -> None:
    """Write the weights of a finished run, the description by which timm builds the network, and a model card.

    Args:
        run: its folder.
        which: `best` or `last`.
        folder: appears whole or not at all. One that holds an export is replaced, no other.
        calibrate: multiply the classifier by α, so that softmax of the logits is the network's calibrated
            probabilities.

    Raises:
        InputError: no finished run, damaged weights, α = 0 and `calibrate`, or another folder in the place.
    """
    _check_place(folder)
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} is no run folder: it has no config.yaml")
    source = weights.read_run(run, which)
    if source.summary is None or source.summary.status != FINISHED:
        status = source.summary.status if source.summary else "without a summary.json"
        raise InputError(f"the run {run} is {status}: only a finished one has results to export")
    if calibrate and source.alpha == 0:
        raise InputError("a network of α = 0 has no calibrated probabilities, softmax(0·z) is uniform: no --calibrate")
    if calibrate and source.summary.identity["method"]["implementation"] == "authors_hook":
        raise InputError("what the authors' hook trains is not calibrated by α, it is no exact PGT: no --calibrate")
    networks.fit(source.path, source.state, source.model)
    state = exported_state(source, calibrate)
    config = timm_config(source, calibrate)
    text = card.render(source, which, config, calibrate)
    _write(folder, state, config, text)


def exported_state(source: Source, calibrate: bool) -> dict[str, Tensor]:
    """The weights in float32, in the common memory format; the classifier times α where `calibrate`."""
    state = {key: value.float() if value.is_floating_point() else value for key, value in source.state.items()}
    if calibrate and source.alpha is not None:
        state |= {key: value * source.alpha for key, value in state.items() if key.startswith("fc.")}
    return {key: value.contiguous() for key, value in state.items()}


def timm_config(source: Source, calibrated: bool) -> dict[str, Any]:
    """`config.json`: what timm reads, and under `pgt` what `pgt validate` does."""
    assert source.model is not None
    classes, features = source.state["fc.weight"].shape
    return {
        "architecture": source.model.removesuffix("_nobn"),
        "num_classes": classes,
        "num_features": features,
        "pretrained_cfg": {
            **preprocessing(source.config),
            "fixed_input_size": False,
            "num_classes": classes,
            "first_conv": "conv1",
            "classifier": "fc",
            "license": card.LICENSE,
        },
        "pgt": {
            "model": source.model,
            "data": source.config["data"]["name"],
            "calibrated": calibrated,
            **source.known,
        },
    }


def preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the network was shown in evaluation, in timm's words: pixels in [0, 1], then mean and deviation."""
    name = config["data"]["name"]
    if name in data.FOLDERS:
        size = config["data"]["image_size"]
        crop = math.floor(1e4 * size / round(size * EVALUATION_RESIZE)) / 1e4  # down: timm cuts size / crop off
    else:
        size, crop = DATA_SETS[name].image_size or config["data"]["image_size"], 1.0
    if name in CIFAR_AND_FOLDERS:
        mean, deviation = MEAN, DEVIATION
    else:
        mean, deviation = ([value] * 3 for value in (digits.normalisation() if name == "digits" else (0.0, 1.0)))
    return {
        "input_size": [3, size, size],
        "interpolation": config["model"]["interpolation"],
        "crop_pct": crop,
        "crop_mode": "center",
        "mean": list(mean),
        "std": list(deviation),
    }


def _check_place(folder: Path) -> None:
    if folder.is_dir() and (others := sorted(path.name for path in folder.iterdir() if path.name not in FILES)):
        raise InputError(f"{folder} holds other things than an export ({others[0]}): name another --output")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} is no export (it has no model.safetensors): name another --output")
    if not folder.is_dir() and folder.exists():
        raise InputError(f"{folder} is no folder: name another --output")


def _write(folder: Path, state: dict[str, Tensor], config: Mapping[str, Any], text: str) -> None:
    """Put the folder in its place when all of it is on the disk; an earlier one makes way for it, or comes back."""
    from safetensors.torch import save

    folder = folder.absolute()
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    contents = {
        "model.safetensors": save(state, {"format": "pt"}),
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "README.md": text.encode(),
    }
    try:
        new.mkdir(parents=True)
        for name, content in contents.items():
            with atomic_write(new / name) as file:
                file.write(content)
        replaced = folder.is_dir()
        if replaced:
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if replaced:
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
