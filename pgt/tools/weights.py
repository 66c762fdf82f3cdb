"""Weights of runs, exports and foreign checkpoints, with what is known of their training.

No code in a file is executed: `torch.load(weights_only=True)` admits tensors, plain values and `PLAIN`. (timm's
`load_state_dict` does so, too, but it drops the training arguments and refuses the NumPy numbers in the authors'
checkpoints.)
"""

from __future__ import annotations

import argparse
import csv
import json
import pickle  # nosec B403  # only for its UnpicklingError
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pgt.core.errors import InputError
from pgt.core.types import ADDED_BRANCHES, is_own
from pgt.runs import folder as runs
from pgt.runs.folder import Summary
from pgt.runs.labels import as_pgt, method_label, name_of

BEST = "best"
PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")},
    (scalar, "numpy._core.multiarray.scalar"),
    (scalar, "numpy.core.multiarray.scalar"),
]
"""Types that a checkpoint may hold beyond those that `torch.load` admits: training arguments and NumPy's numbers."""
STATE_KEYS = ("state_dict", "model")
"""Keys under which a training checkpoint keeps the weights."""
PREFIXES = re.compile(r"^((_orig_mod|module|model)\.)+")
"""Prefixes that torch.compile, DistributedDataParallel and Lightning modules add to the names of weights."""


@dataclass(frozen=True)
class Source:
    """Weights and what is known of them; unknown values are None or missing.

    Attributes:
        path: of the file.
        state: name -> tensor, on the CPU.
        model: name of the network, as in an identity.
        alpha: the network's calibrated probabilities are softmax(α·z).
        known: values of its training, by the names of `pgt.reproduction.published.Row`.
        config: of a run, its config.yaml; of an export, the part that is in its config.json.
        summary: of the run.
        recorded: the run's own evaluation of these weights, a record of its metrics.jsonl.
        arguments: of the training program, from the checkpoint.
    """

    path: Path
    state: dict[str, Tensor]
    model: str | None = None
    alpha: float | None = None
    known: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Summary | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path, which: str | None = None) -> Source:
    """Read the weights of a run, of its checkpoint, of an export, or of a `.safetensors` or PyTorch checkpoint.

    Args:
        path: of the file or folder.
        which: `best` or `last`, for a run folder (default: `best`).

    Raises:
        InputError: the path does not exist, is damaged, holds no weights, or holds objects that are not safe to load.
    """
    if (path / "config.yaml").is_file():
        return read_run(path, which or BEST)
    if which is not None:
        raise InputError(f"{path} is no run folder: leave --weights out")
    if path.is_dir():
        if not (path / "model.safetensors").is_file():
            raise InputError(f"{path} is neither a run folder (no config.yaml) nor an export (no model.safetensors)")
        return _read_safetensors(path / "model.safetensors")
    if not path.is_file():
        raise InputError(f"no file or folder {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    run = path.absolute().parent.parent
    if path.name in ("best.pt", "last.pt") and (run / "config.yaml").is_file():
        return read_run(run, path.stem)
    return _read_checkpoint(path)


def read_run(folder: Path, which: str) -> Source:
    """Read the best or the last weights of a run.

    Raises:
        InputError: as `read`.
    """
    path = folder / "checkpoints" / f"{which}.pt"
    if not path.is_file():
        raise InputError(f"no {path}: {folder} is no run folder, or has no such checkpoint yet")
    config, summary = runs.read_config(folder), runs.read_summary(folder)
    loaded = _load(path)
    state = _weights(path, loaded)
    try:
        known = {
            "schedule": config["schedule"]["name"],
            "batch": config["recipe"]["global_batch"],
            "label_smoothing": config["method"]["label_smoothing"],
            "method": as_pgt(method_label(config), config["method"]["implementation"]),
            "alpha": config["method"]["alpha"],
        }
        name = name_of(config["model"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'config.yaml'} is no config of a run: it lacks {error}") from None
    in_epoch = which != BEST and summary is not None and loaded.get("progress", {}).get("epoch") == summary.epochs
    recorded = _recorded(folder, summary, which) if summary is not None and not in_epoch else {}
    return Source(path, state, name, known["alpha"], known, config, summary, recorded)


def _recorded(folder: Path, summary: Summary, which: str) -> Mapping[str, Any]:
    """Return the record of the epoch of the weights: of the best epoch, the first one if several are equal."""
    epochs = runs.read_epochs(folder, summary.epochs)
    evaluated = [record for record in epochs if "test_top1" in record]
    if which == BEST:
        return max(evaluated, key=lambda record: record["test_top1"], default={})
    return next((record for record in evaluated if record["epoch"] == summary.epochs - 1), {})


def _read_safetensors(path: Path) -> Source:
    """Read a `.safetensors` and the config.json beside it, if there is one."""
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from None
    beside = path.with_name("config.json")
    if not beside.is_file():
        return Source(path, _stripped(state))
    try:
        config = json.loads(beside.read_text())
        ours, image = config.get("pgt", {}), config.get("pretrained_cfg", {})
        alpha = 1.0 if ours.get("calibrated") else ours.get("alpha")
        data = {"name": ours["data"], "image_size": image["input_size"][1]} if "data" in ours else {}
        resized = {"interpolation": image["interpolation"]} if "interpolation" in image else {}
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise _damaged(beside, error) from None
    known = {key: ours[key] for key in ("schedule", "batch", "label_smoothing", "method", "alpha") if key in ours}
    source = {"data": data, "model": resized} if data else {}
    return Source(path, _stripped(state), ours.get("model"), alpha, known, source)


def _read_checkpoint(path: Path) -> Source:
    """Read a state dict, or a training program's checkpoint that contains one."""
    content = _load(path)
    state = _weights(path, content)
    arguments = content.get("args", {})
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    known = _authors_setting(arguments) if isinstance(arguments, dict) else {}
    return Source(path, state, alpha=known.get("alpha"), known=known, arguments=arguments)


def _authors_setting(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the arguments of the authors' train.py to our names. Its α of 0 switches PGT off."""
    if "modify_softmax" not in arguments:
        return {}
    alpha = float(arguments["modify_softmax"] or 1)
    clipping = {"norm": ["gc"], "agc": ["agc"]}.get(arguments.get("clip_mode", ""), ["clipping"])
    parts = (clipping if arguments.get("clip_grad") else []) + (["pgt"] if alpha != 1 else [])
    known: dict[str, Any] = {"alpha": alpha, "method": "+".join(parts) or "baseline"}
    if "sched" in arguments:
        known["schedule"] = arguments["sched"]
    if "smoothing" in arguments:
        known["label_smoothing"] = arguments["smoothing"]
    if "batch_size" in arguments and "world_size" in arguments:
        known["batch"] = arguments["batch_size"] * arguments["world_size"]
    return known


def _load(path: Path) -> Any:
    """Load a file of `torch.save` that holds only tensors, plain values and `PLAIN`."""
    try:
        with torch.serialization.safe_globals(PLAIN), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of pickles that it has not written
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types of errors for damaged files
        if isinstance(error, pickle.UnpicklingError) and (refused := re.search(r"GLOBAL ([\w.]*\w)", str(error))):
            raise InputError(
                f"{path} is not loaded: it holds {refused[1]}; only tensors and plain values are safe to load"
            ) from None
        if isinstance(error, OSError) and error.filename:
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot load {path} ({type(error).__name__}): it is no checkpoint, or it is damaged")


def _weights(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the network's own weights in a checkpoint, without the prefixes of wrappers."""
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no weights but a {type(content).__name__}")
    state = next((content[key] for key in STATE_KEYS if isinstance(content.get(key), dict)), content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        keys = ", ".join(str(key) for key in list(content)[:5])
        wanted = f"a state dict, or one under {' or '.join(STATE_KEYS)}"
        raise InputError(f"{path} holds no weights: {wanted}; it has {keys}")
    state = _stripped(state)
    if any(key.startswith(f"{ADDED_BRANCHES}.") for key in state):
        raise InputError(
            f"{path} has branches that its network computes with (method.transforms: gcode, mode additive), and no "
            "network is built with them here: only runs of mode gradient can be exported and validated"
        )
    return {key: value for key, value in state.items() if is_own(key)}


def _stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {PREFIXES.sub("", str(key)): value for key, value in state.items()}


def read_authors_log(checkpoint: Path) -> list[tuple[int, float]]:
    """Read (epoch, test top-1) from the `summary.csv` that timm writes beside a checkpoint; empty if there is none."""
    path = checkpoint.with_name("summary.csv")
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    try:
        epochs = [line for line in lines if line["epoch"] != "epoch"]  # a resumed training repeats the header
        return [(int(line["epoch"]), float(line["eval_top1"])) for line in epochs]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is no log of timm's train.py, which has epoch and eval_top1: move it away") from None
