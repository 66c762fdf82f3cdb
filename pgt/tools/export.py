"""`pgt export`: writes a run's network as a folder that timm and the Hugging Face Hub read."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from pgt import models
from pgt.core.errors import InputError
from pgt.core.files import atomic_write
from pgt.core.registry import DATA_SETS, TIMM
from pgt.data import digits
from pgt.data.delivery import DEVIATION, MEAN
from pgt.data.reader import EVALUATION_RESIZE
from pgt.runs.folder import FINISHED
from pgt.tools import card, networks, weights
from pgt.tools.weights import Source

FILES = {"model.safetensors", "config.json", "README.md"}


def command(run: Path, which: str, output: Path | None, calibrate: bool) -> None:
    """Export, and print the folder."""
    folder = output or run / ("export-calibrated" if calibrate else "export")
    export(run, which, folder, calibrate)
    print(f"written to {folder}")


def export(run: Path, which: str, folder: Path, calibrate: bool) -> None:
    """Write the weights of a finished run, the config.json from which timm builds the network, and a model card.

    Args:
        run: its folder.
        which: `best` or `last`.
        folder: to write. It appears as a whole or not at all, and replaces an earlier export, but no other folder.
        calibrate: multiply the classifier by α, so that softmax of the logits gives the network's calibrated
            probabilities.

    Raises:
        InputError: the run is not finished, its weights are damaged, it cannot be calibrated, or `folder` holds
            something else.
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
    if calibrate and source.summary.identity["method"]["implementation"].startswith("authors_hook"):
        raise InputError("what the authors' hook trains is not calibrated by α, it is no exact PGT: no --calibrate")
    _, model = networks.fit(source.path, source.state, source.model)
    heads = models.classifiers(model)
    state = exported_state(source, heads if calibrate else ())
    config = timm_config(source, heads, calibrate)
    text = card.render(source, which, config, calibrate)
    _write(folder, state, config, text)


def exported_state(source: Source, calibrated: Sequence[str]) -> dict[str, Tensor]:
    """Return the weights in float32, contiguous; those of the modules `calibrated` are multiplied by α."""
    state = {key: value.float() if value.is_floating_point() else value for key, value in source.state.items()}
    if source.alpha is not None:
        state |= {k: v * source.alpha for k, v in state.items() if k.rpartition(".")[0] in calibrated}
    return {key: value.contiguous() for key, value in state.items()}


def timm_config(source: Source, heads: Sequence[str], calibrated: bool) -> dict[str, Any]:
    """Return the content of `config.json`: timm's description of the network and, under `pgt`, our own.

    Args:
        source: the run.
        heads: names of the network's classifiers, of which a few of timm's have two.
        calibrated: whether they are multiplied by α.
    """
    assert source.model is not None
    classes, features = source.state[f"{heads[0]}.weight"].shape
    return {
        "architecture": source.model.removeprefix(TIMM).partition(".")[0].removesuffix("_nobn"),
        "num_classes": classes,
        "num_features": features,
        "pretrained_cfg": {
            **preprocessing(source.config),
            "fixed_input_size": False,
            "num_classes": classes,
            "first_conv": next(key.removesuffix(".weight") for key, value in source.state.items() if value.ndim == 4),
            "classifier": heads[0] if len(heads) == 1 else list(heads),
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
    """Describe an evaluation's preprocessing to timm: size, crop, and mean and deviation of pixels in [0, 1]."""
    name = config["data"]["name"]
    facts = DATA_SETS[name]
    if facts.in_folders:
        size = config["data"]["image_size"]
        crop = math.floor(1e4 * size / round(size * EVALUATION_RESIZE)) / 1e4  # timm rounds size / crop down
    else:
        size, crop = facts.image_size or config["data"]["image_size"], 1.0
    mean, deviation = [0.0] * 3, [1.0] * 3
    if name == "digits":
        mean, deviation = ([value] * 3 for value in digits.normalisation())
    elif name != "synthetic":
        mean, deviation = list(MEAN), list(DEVIATION)
    return {
        "input_size": [3, size, size],
        "interpolation": config["model"]["interpolation"] or models.interpolation(config["model"]["name"]),
        "crop_pct": crop,
        "crop_mode": "center",
        "mean": mean,
        "std": deviation,
    }


def _check_place(folder: Path) -> None:
    if folder.is_dir() and (others := sorted(path.name for path in folder.iterdir() if path.name not in FILES)):
        raise InputError(f"{folder} holds other things than an export ({others[0]}): name another --output")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} is no export (it has no model.safetensors): name another --output")
    if not folder.is_dir() and folder.exists():
        raise InputError(f"{folder} is no folder: name another --output")


def _write(folder: Path, state: dict[str, Tensor], config: Mapping[str, Any], text: str) -> None:
    """Write a folder beside `folder`, then rename it. An earlier export is restored if that fails."""
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
