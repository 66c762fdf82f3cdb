"""Gradient clipping by one norm over all parameters (GC), by value and unit-wise (AGC), in place on `.grad`.

No loop over filters and no host synchronisation: thresholds are applied as factors on the device.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

Parameters = Iterable[tuple[str, Tensor]] | Iterable[Tensor] | Tensor
"""`model.named_parameters()`, `model.parameters()`, or one tensor, as in `torch.nn.utils.clip_grad_norm_`."""


def clip_grad_norm(parameters: Parameters, step: int = 0, *, max_norm: float) -> None:
    """Scale all gradients so that their common norm is at most λ (Eq. 5, "GC").

        G ← λ·G/‖G‖ if ‖G‖ > λ

    Args:
        parameters: parameters or (name, parameter) pairs; ‖G‖ is one 2-norm over all of them.
        step: not used; every gradient transform takes it.
        max_norm: λ, above 0.

    Raises:
        ValueError: λ is not above 0.

    Examples:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_grad_norm([weight], max_norm=1.0)
        >>> weight.grad
        tensor([0.6000, 0.8000])

    Reference: Pascanu et al., arXiv 1211.5063; the PGT paper calls it clipping by value but clips by norm.
    """
    _check_positive(max_norm=max_norm)
    grads = _gradients(parameters)
    if not grads:
        return
    norm = torch.nn.utils.get_total_norm(grads)
    torch._foreach_mul_(grads, max_norm / norm.clamp(min=max_norm))


def clip_grad_value(parameters: Parameters, step: int = 0, *, clip_value: float) -> None:
    """Bound each entry of each gradient: G_i ← min(max(G_i, −c), c).

    Args:
        parameters: parameters or (name, parameter) pairs.
        step: not used; every gradient transform takes it.
        clip_value: c, above 0.

    Raises:
        ValueError: c is not above 0.
    """
    _check_positive(clip_value=clip_value)
    if grads := _gradients(parameters):
        torch._foreach_clamp_min_(grads, -clip_value)
        torch._foreach_clamp_max_(grads, clip_value)


def clip_grad_unitwise(
    parameters: Parameters,
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
        parameters: parameters or (name, parameter) pairs; `exclude` needs the latter.
        step: not used; every gradient transform takes it.
        clip_factor: λ, above 0.
        eps: ε, above 0, the least weight norm, so that zero weights can move.
        exclude: regular expression; parameters in whose name it is found are left alone.

    Raises:
        ValueError: λ or ε is not above 0; `exclude` and parameters without names.

    Examples:
        >>> weight = torch.tensor([[3.0, 4.0], [0.0, 1.0]], requires_grad=True)
        >>> weight.grad = torch.ones(2, 2)
        >>> clip_grad_unitwise([weight], clip_factor=0.1)
        >>> weight.grad.norm(dim=1)  # a tenth of the norms of the rows
        tensor([0.5000, 0.1000])

    Reference: Brock et al., arXiv 2102.06171.
    """
    _check_positive(clip_factor=clip_factor, eps=eps)
    chosen = [
        (p.detach(), p.grad)
        for name, p in _named(parameters, exclude is not None)
        if p.grad is not None and not (exclude is not None and re.search(exclude, name))
    ]
    if not chosen:
        return
    grads = [grad for _, grad in chosen]
    norms = [unitwise_norm(grad) for grad in grads]
    bounds = [unitwise_norm(weight) for weight, _ in chosen]
    torch._foreach_clamp_min_(bounds, eps)
    torch._foreach_mul_(bounds, clip_factor)
    torch._foreach_clamp_min_(norms, bounds)
    torch._foreach_div_(bounds, norms)
    torch._foreach_mul_(grads, bounds)


def unitwise_norm(x: Tensor) -> Tensor:
    """2-norm of each unit of a parameter: [O, 1, ...] for two or more dimensions, a scalar below."""
    dimensions = None if x.ndim < 2 else tuple(range(1, x.ndim))
    norm: Tensor = torch.linalg.vector_norm(x, dim=dimensions, keepdim=True)
    return norm


def _named(parameters: Parameters, needs_names: bool = False) -> list[tuple[str, Tensor]]:
    """(name, parameter) pairs; a parameter that came alone has an empty name.

    Raises:
        ValueError: names are needed and there are none.
    """
    items = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if needs_names and any(isinstance(item, Tensor) for item in items):
        raise ValueError("exclude goes by names: pass model.named_parameters(), not model.parameters()")
    return [("", item) if isinstance(item, Tensor) else item for item in items]


def _gradients(parameters: Parameters) -> list[Tensor]:
    return [p.grad for _, p in _named(parameters) if p.grad is not None]


def _check_positive(**thresholds: float) -> None:
    for name, value in thresholds.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
