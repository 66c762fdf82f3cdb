"""The methods that alter gradients, in pure torch: usable without the rest of pgt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pgt.core.types import Alteration, NamedParameters
from pgt.methods.amplification import Amplification
from pgt.methods.authors_hook import AuthorsHookCrossEntropy, EmulatedHookCrossEntropy
from pgt.methods.clipping import clip_grad_norm, clip_grad_unitwise, clip_grad_value, unitwise_norm
from pgt.methods.correction_ode import StateCorrection
from pgt.methods.correction_weights import WeightCorrection
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
    "authors_hook_fp16": EmulatedHookCrossEntropy,
}
"""The implementations of PGT by the name that a config's `method.implementation` gives."""

TRANSFORMS: dict[str, Callable[..., None]] = {
    "gc": clip_grad_norm,
    "value": clip_grad_value,
    "agc": clip_grad_unitwise,
}
"""The gradient transforms by the name that a config's `method.transforms` gives."""

ALTERATIONS: dict[str, Callable[..., Alteration]] = {
    "amplification": Amplification,
    "gcw": WeightCorrection,
    "gcode": StateCorrection,
}
"""The alterations that keep a state or change the network, by the name that `method.transforms` gives."""


def build_loss(implementation: str, alpha: float, label_smoothing: float, smoothing: str) -> nn.Module:
    """Make the loss of that implementation (see `LOSSES`): (logits, target) -> scalar."""
    return LOSSES[implementation](alpha, label_smoothing=label_smoothing, smoothing=smoothing)


class Transform(Alteration):
    """A gradient transform with its options, as an alteration that keeps nothing."""

    def __init__(self, transform: Callable[..., None], **options: Any) -> None:
        self.transform, self.options = transform, options

    def __call__(self, parameters: NamedParameters, step: int) -> None:
        self.transform(parameters, step, **self.options)


def build_alteration(name: str, **options: Any) -> Alteration:
    """Make the alteration of that name (see `TRANSFORMS` and `ALTERATIONS`) with its options."""
    return ALTERATIONS[name](**options) if name in ALTERATIONS else Transform(TRANSFORMS[name], **options)


__all__ = [
    "ALTERATIONS",
    "LOSSES",
    "TRANSFORMS",
    "Amplification",
    "AuthorsHookCrossEntropy",
    "EmulatedHookCrossEntropy",
    "PowerGradCrossEntropy",
    "StateCorrection",
    "SurrogateCrossEntropy",
    "Transform",
    "WeightCorrection",
    "build_alteration",
    "build_loss",
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
