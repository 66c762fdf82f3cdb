"""Gradient clipping by one norm over all parameters (GC), by value and unit-wise (AGC), in place on `.grad`.

No loop over filters and no host synchronisation: thresholds are applied as factors on the device.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pgt.core.types import NamedParameters


def clip_grad_norm(parameters: NamedParameters, step: int = 0, *, max_norm: float) -> None:
    """Scale all gradients so that their common norm is at most λ (Eq. 5, "GC").

        G ← λ·G/‖G‖ if ‖G‖ > λ

    Args:
        parameters: (name, parameter) pairs; ‖G‖ is one 2-norm over all of them.
        step: not used; every gradient transform takes it.
        max_norm: λ.

    Reference: Pascanu et al., arXiv 1211.5063; the PGT paper calls it clipping by value but clips by norm.
    """
    grads = [p.grad for _, p in parameters if p.grad is not None]
    if not grads:
        return
    norm = torch.nn.utils.get_total_norm(grads)
    torch._foreach_mul_(grads, max_norm / norm.clamp(min=max_norm))


def clip_grad_value(parameters: NamedParameters, step: int = 0, *, clip_value: float) -> None:
    """Bound each entry of each gradient: G_i ← min(max(G_i, −c), c).

    Args:
        parameters: (name, parameter) pairs.
        step: not used; every gradient transform takes it.
        clip_value: c.
    """
    grads = [p.grad for _, p in parameters if p.grad is not None]
    if grads:
        torch._foreach_clamp_min_(grads, -clip_value)
        torch._foreach_clamp_max_(grads, clip_value)


def clip_grad_unitwise(
    parameters: NamedParameters,
    step: int = 0,
    *,
    clip_factor: float,
    eps: float = 1e-3,
    exclude: str | None = None,
) -> None:
    """Adaptive gradient clipping: bound each unit's gradient by its weights' norm (Eq. 6, "AGC").

        G_i ← λ·max(‖W_i‖, ε)/‖G_i‖·G_i if ‖G_i‖ > λ·max(‖W_i‖, ε)

    A unit i is a row of a matrix, a filter of a convolution, or a whole vector (bias, norm's scale).

    Args:
        parameters: (name, parameter) pairs.
        step: not used; every gradient transform takes it.
        clip_factor: λ.
        eps: least weight norm, so that zero weights can move.
        exclude: regular expression; parameters in whose name it is found are left alone.

    Reference: Brock et al., arXiv 2102.06171.
    """
    chosen = [
        (p.detach(), p.grad)
        for name, p in parameters
        if p.grad is not None and not (exclude is not None and re.search(exclude, name))
    ]
    for weight, grad in chosen:
        bound = unitwise_norm(weight).clamp_(min=eps).mul_(clip_factor)
        norm = unitwise_norm(grad)
        grad.mul_(bound / torch.maximum(norm, bound))


def unitwise_norm(x: Tensor) -> Tensor:
    """2-norm of each unit of a parameter: [O, 1, ...] for two or more dimensions, a scalar below."""
    dimensions = None if x.ndim < 2 else tuple(range(1, x.ndim))
    norm: Tensor = torch.linalg.vector_norm(x, dim=dimensions, keepdim=True)
    return norm
