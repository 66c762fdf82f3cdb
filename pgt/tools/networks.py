"""Finds the network that weights belong to."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Size, Tensor, nn

from pgt.core.errors import InputError
from pgt.core.registry import STEMS, TIMM
from pgt.models import MODELS, build, classifiers
from pgt.models.timm_networks import facts

COUNTER = "num_batches_tracked"
"""Name of batch norm's counter. Only training uses it, and older checkpoints lack it."""


def fit(path: Path, state: Mapping[str, Tensor], wanted: str | None) -> tuple[str, nn.Module]:
    """Return the name of the network that weights belong to, and the network with them, in evaluation mode.

    Args:
        path: of the weights, for error messages.
        state: name -> tensor.
        wanted: the network's name; None: the network is found by the names and shapes of the weights.

    Raises:
        InputError: there is no such network, or the weights do not fit.
    """
    head = "fc"
    if wanted is not None and wanted.startswith(TIMM):
        said = facts(wanted).get("classifier", head)
        head = said if isinstance(said, str) else said[0]
    elif wanted is not None and "." in wanted:
        raise InputError(
            f"{path} is of {wanted}, a network of your own: only your own code can build it, and load the "
            "entry 'model' of this file"
        )
    elif wanted is not None and wanted not in MODELS:
        close = difflib.get_close_matches(wanted, MODELS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"take one of {', '.join(MODELS)}"
        raise InputError(f"no model is called {wanted}: {hint}")
    weight = state.get(f"{head}.weight")
    if weight is not None and weight.ndim == 4:
        raise InputError(
            f"{path}: the classifier {head} is a convolution: only linear ones can be exported or validated"
        )
    if weight is None or weight.ndim != 2:
        known = f"not {wanted}" if head != "fc" else f"none of {', '.join(MODELS)}"
        raise InputError(f"{path} holds no classifier {head}.weight [classes, features]: it is {known}")
    classes = len(weight)
    name = wanted or _nearest(classes, state)
    if wrong := differences(name, classes, state):
        nearest = _nearest(classes, state)
        left = len(differences(nearest, classes, state))
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        hint = f"it fits {nearest}" if not left else f"{nearest} is nearest ({left} differences)"
        hint = f"; {hint}" if nearest != name else ""
        raise InputError(f"{path} does not fit {name} ({wrong[0]}{more}){hint}")
    model = build(name, classes, _stem(name, state))
    model.load_state_dict(dict(state), strict=False)  # `differences` has found nothing but missing counters
    return name, model.eval()


def classes(model: nn.Module) -> int:
    """Return the number of classes of a network that `fit` has made."""
    return len(model.get_parameter(f"{classifiers(model)[0]}.weight"))


def differences(name: str, classes: int, state: Mapping[str, Tensor]) -> list[str]:
    """Describe each key that the weights lack, that the network does not have, or that has another shape."""
    shapes = _shapes(name, classes, _stem(name, state))
    return (
        [f"{key} is missing" for key in shapes if key not in state and not key.endswith(COUNTER)]
        + [f"{key} is unexpected" for key in state if key not in shapes]
        + [
            f"{k} is {list(v.shape)}, not {list(shapes[k])}"
            for k, v in state.items()
            if shapes.get(k, v.shape) != v.shape
        ]
    )


def _nearest(classes: int, state: Mapping[str, Tensor]) -> str:
    """Return the name of the network with the fewest differences."""
    return min(MODELS, key=lambda model: len(differences(model, classes, state)))


def _stem(name: str, state: Mapping[str, Tensor]) -> str:
    """Return the stem that weights of the network of that name have, by the size of their first filters."""
    return "small" if name in STEMS and "conv1.weight" in state and state["conv1.weight"].shape[-1] == 3 else "standard"


@cache
def _shapes(name: str, classes: int, stem: str) -> dict[str, Size]:
    with torch.device("cpu" if name.startswith(TIMM) else "meta"):  # some of timm's are not built on meta
        return {key: value.shape for key, value in build(name, classes, stem).state_dict().items()}
