"""PowerGrad Transform: gradients altered in the backward pass, and the reproduction of its paper.

from pgt import PowerGradCrossEntropy

criterion = PowerGradCrossEntropy(alpha=0.25)  # instead of torch.nn.CrossEntropyLoss()

Losses, transforms and alterations need torch alone; `train`, `pgt.runs` and the command `pgt` need `powergrad[train]`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgt.launch.from_python import train
    from pgt.methods import (
        Amplification,
        PowerGradCrossEntropy,
        StateCorrection,
        SurrogateCrossEntropy,
        WeightCorrection,
        clip_grad_norm,
        clip_grad_unitwise,
        clip_grad_value,
        power_grad_cross_entropy,
        power_transform,
        smooth_labels,
        stationary_threshold,
        surrogate_cross_entropy,
    )

__version__ = "0.1.0"

__all__ = [
    "Amplification",
    "PowerGradCrossEntropy",
    "StateCorrection",
    "SurrogateCrossEntropy",
    "WeightCorrection",
    "clip_grad_norm",
    "clip_grad_unitwise",
    "clip_grad_value",
    "power_grad_cross_entropy",
    "power_transform",
    "smooth_labels",
    "stationary_threshold",
    "surrogate_cross_entropy",
    "train",
]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    """Import what is asked for: without torch, `pgt --help` answers at once, and a loss does without the framework."""
    if name not in __all__:
        raise AttributeError(f"module 'pgt' has no attribute {name!r}")
    try:
        return getattr(import_module("pgt.launch.from_python" if name == "train" else "pgt.methods"), name)
    except ModuleNotFoundError as error:
        from pgt.core.errors import without_framework

        raise without_framework(error) or error from None
