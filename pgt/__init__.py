"""PowerGrad Transform: gradients altered in the backward pass, and the reproduction of its paper.

from pgt import PowerGradCrossEntropy

criterion = PowerGradCrossEntropy(alpha=0.25)  # instead of torch.nn.CrossEntropyLoss()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgt.methods import (
        PowerGradCrossEntropy,
        SurrogateCrossEntropy,
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
    "PowerGradCrossEntropy",
    "SurrogateCrossEntropy",
    "clip_grad_norm",
    "clip_grad_unitwise",
    "clip_grad_value",
    "power_grad_cross_entropy",
    "power_transform",
    "smooth_labels",
    "stationary_threshold",
    "surrogate_cross_entropy",
]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    """Import torch only when a method is asked for: `pgt --help` answers at once."""
    if name not in __all__:
        raise AttributeError(f"module 'pgt' has no attribute {name!r}")
    import pgt.methods

    return getattr(pgt.methods, name)
