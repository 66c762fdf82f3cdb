"""The methods that alter gradients, in pure torch: usable without the rest of pgt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from pgt.core.types import GradientTransform
from pgt.methods.authors_hook import AuthorsHookCrossEntropy
from pgt.methods.clipping import clip_grad_norm, clip_grad_unitwise, clip_grad_value, unitwise_norm
from pgt.methods.power_grad import (
    PowerGradCrossEntropy,
    power_grad_cross_entropy,
    power_transform,
    stationary_threshold,
)
from pgt.methods.smoothing import smooth_labels, uniform_epsilon
from pgt.methods.surrogate import SurrogateCrossEntropy, surrogate_cross_entropy

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "exact": PowerGradCrossEntropy,
    "surrogate": SurrogateCrossEntropy,
    "authors_hook": AuthorsHookCrossEntropy,
}
"""The implementations of PGT by the name that a config's `method.implementation` gives."""

TRANSFORMS: dict[str, Callable[..., None]] = {
    "gc": clip_grad_norm,
    "value": clip_grad_value,
    "agc": clip_grad_unitwise,
}
"""The gradient transforms by the name that a config's `method.transforms` gives."""


def build_loss(implementation: str, alpha: float, label_smoothing: float, smoothing: str) -> nn.Module:
    """Make the loss of that implementation (see `LOSSES`): (logits, target) -> scalar."""
    return LOSSES[implementation](alpha, label_smoothing=label_smoothing, smoothing=smoothing)


def build_transform(name: str, **options: Any) -> GradientTransform:
    """Set the options of the transform of that name: the result is a function of (named parameters, step)."""
    return partial(TRANSFORMS[name], **options)


__all__ = [
    "LOSSES",
    "TRANSFORMS",
    "AuthorsHookCrossEntropy",
    "PowerGradCrossEntropy",
    "SurrogateCrossEntropy",
    "build_loss",
    "build_transform",
    "clip_grad_norm",
    "clip_grad_unitwise",
    "clip_grad_value",
    "power_grad_cross_entropy",
    "power_transform",
    "smooth_labels",
    "stationary_threshold",
    "surrogate_cross_entropy",
    "uniform_epsilon",
    "unitwise_norm",
]
