"""What alters a gradient: pure torch, usable without the rest of pgt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pgt.methods.clipping import clip_grad_norm, clip_grad_unitwise, unitwise_norm
from pgt.methods.power_grad import (
    PowerGradCrossEntropy,
    power_grad_cross_entropy,
    power_transform,
    stationary_threshold,
)
from pgt.methods.smoothing import smooth_labels, uniform_epsilon

if TYPE_CHECKING:
    from pgt.types import GradientTransform

TRANSFORMS: dict[str, Callable[..., None]] = {"gc": clip_grad_norm, "agc": clip_grad_unitwise}
"""Gradient transforms by the name that a config's `method.transforms` gives."""


def build_transform(name: str, **options: Any) -> GradientTransform:
    """The transform of that name with its options set: a function of (named parameters, step)."""
    return partial(TRANSFORMS[name], **options)


__all__ = [
    "TRANSFORMS",
    "PowerGradCrossEntropy",
    "build_transform",
    "clip_grad_norm",
    "clip_grad_unitwise",
    "power_grad_cross_entropy",
    "power_transform",
    "smooth_labels",
    "stationary_threshold",
    "uniform_epsilon",
    "unitwise_norm",
]
