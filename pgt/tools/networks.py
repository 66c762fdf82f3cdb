"""Which of our networks some weights are of."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Size, Tensor, nn

from pgt.core.errors import InputError
from pgt.models import MODELS, build

COUNTER = "num_batches_tracked"
"""Of batch norm; it serves training only, and older checkpoints lack it."""


def fit(path: Path, state: Mapping[str, Tensor], wanted: str | None) -> tuple[str, nn.Module]:
    """The network that the weights are of, with them, in evaluation mode, and its name.

    Args:
        path: to name in a complaint.
        state: name -> tensor.
        wanted: its name; None: the one whose names and shapes are the weights'.

    Raises:
        InputError: no such network, or the weights do not fit.
    """
    if wanted is not None and wanted not in MODELS:
        nearest = difflib.get_close_matches(wanted, MODELS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"take one of {', '.join(MODELS)}"
        raise InputError(f"no model is called {wanted}: {hint}")
    if "fc.weight" not in state or state["fc.weight"].ndim != 2:
        raise InputError(f"{path} holds no classifier fc.weight [classes, features]: it is none of {', '.join(MODELS)}")
    classes = len(state["fc.weight"])
    name = wanted
    if name is None or differences(name, classes, state):
        nearest_name = min(MODELS, key=lambda model: len(differences(model, classes, state)))
        if name is not None or differences(nearest_name, classes, state):
            raise _misfit(path, state, name or nearest_name, nearest_name)
        name = nearest_name
    model = build(name, classes)
    model.load_state_dict(dict(state), strict=False)  # whether all is there was asked above
    return name, model.eval()


def differences(name: str, classes: int, state: Mapping[str, Tensor]) -> list[str]:
    """Keys that the weights lack, have beyond the network's, or have in another shape, with which of these it is."""
    shapes = _shapes(name, classes)
    return (
        [f"{key} is missing" for key in shapes if key not in state and not key.endswith(COUNTER)]
        + [f"{key} is unexpected" for key in state if key not in shapes]
        + [
            f"{k} is {list(v.shape)}, not {list(shapes[k])}"
            for k, v in state.items()
            if shapes.get(k, v.shape) != v.shape
        ]
    )


@cache
def _shapes(name: str, classes: int) -> dict[str, Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in build(name, classes).state_dict().items()}


def _misfit(path: Path, state: Mapping[str, Tensor], name: str, nearest: str) -> InputError:
    classes = len(state["fc.weight"])
    wrong, left = differences(name, classes, state), differences(nearest, classes, state)
    hint = f"; it fits {nearest}" if not left else f"; {nearest} is nearest ({len(left)} differences)"
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return InputError(f"{path} does not fit {name} ({wrong[0]}{more}){hint if nearest != name else ''}")
