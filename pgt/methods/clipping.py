"""Gradient clipping by one norm over all parameters (GC), by value and unit-wise (AGC), in place on `.grad`.

No loop over filters and no host synchronisation: thresholds are applied as factors on the device.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pgt.methods.gradient import is_short

Parameters = Iterable[tuple[str, Tensor]] | Iterable[Tensor] | Tensor
"""`model.named_parameters()`, `model.parameters()`, or one tensor, as in `torch.nn.utils.clip_grad_norm_`."""


def clip_grad_norm(parameters: Parameters, step: int = 0, *, max_norm: float) -> None:
    """Scale all gradients so that their common norm is at most λ (Eq. 5, "GC").

        G ← λ·G/‖G‖ if ‖G‖ > λ

    Args:
        parameters: parameters or (name, parameter) pairs; ‖G‖ is one 2-norm over all of them.
        step: not used; every gradient transform takes it.
        max_norm: λ, above 0; infinite: nothing is clipped.

    Raises:
        ValueError: λ is not above 0; `parameters` are something else.

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
    # In 16 bits a norm may overflow, which would clip everything to 0. The norm of norms is the norm.
    parts = [torch.linalg.vector_norm(grad, dtype=torch.float32) if is_short(grad) else grad for grad in grads]
    norm = torch.nn.utils.get_total_norm(parts)
    factor = (max_norm / norm).clamp(max=1)
    for device in {grad.device for grad in grads}:  # one, unless a network lies on several
        torch._foreach_mul_([grad for grad in grads if grad.device == device], factor.to(device))


def clip_grad_value(parameters: Parameters, step: int = 0, *, clip_value: float) -> None:
    """Bound each entry of each gradient: G_i ← min(max(G_i, −c), c).

    Args:
        parameters: parameters or (name, parameter) pairs.
        step: not used; every gradient transform takes it.
        clip_value: c, above 0.

    Raises:
        ValueError: c is not above 0; `parameters` are something else.
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
        ValueError: λ or ε is not above 0; `parameters` are something else, or have no names for `exclude`; `exclude` is
            no regular expression.

    Examples:
        >>> weight = torch.tensor([[3.0, 4.0], [0.0, 1.0]], requires_grad=True)
        >>> weight.grad = torch.ones(2, 2)
        >>> clip_grad_unitwise([weight], clip_factor=0.1)
        >>> weight.grad.norm(dim=1)  # a tenth of the norms of the rows
        tensor([0.5000, 0.1000])

    Reference: Brock et al., arXiv 2102.06171.
    """
    _check_positive(clip_factor=clip_factor, eps=eps)
    left_alone = None if exclude is None else _pattern(exclude)
    chosen = [
        (p.detach(), p.grad)
        for name, p in _named(parameters, exclude is not None)
        if p.grad is not None and not (left_alone and left_alone.search(name))
    ]
    if not chosen:
        return
    grads = [grad for _, grad in chosen]
    norms = [unitwise_norm(grad) for grad in grads]
    # Not in place: the norm of a bias that FSDP has sharded is a sum that still has to be taken over the ranks.
    # Nor by torch._foreach_clamp_min, which torch 2.11 lacks for sharded tensors.
    bounds = [unitwise_norm(weight).clamp(min=eps) for weight, _ in chosen]
    factors = torch._foreach_div(torch._foreach_mul(bounds, clip_factor), norms)
    torch._foreach_clamp_max_(factors, 1)
    torch._foreach_mul_(grads, factors)


def unitwise_norm(x: Tensor) -> Tensor:
    """2-norm of each unit of a parameter, in float32 or better: [O, 1, ...], or one entry below two dimensions."""
    dimensions = None if x.ndim < 2 else tuple(range(1, x.ndim))
    dtype = torch.float32 if is_short(x) else None  # a norm in float16 may overflow, and then clips to 0
    norm: Tensor = torch.linalg.vector_norm(x, dim=dimensions, keepdim=True, dtype=dtype)
    return norm


def _named(parameters: Parameters, needs_names: bool = False) -> list[tuple[str, Tensor]]:
    """(name, parameter) pairs; a parameter that came alone has an empty name.

    Raises:
        ValueError: `parameters` are something else, such as a module or a dict; names are needed and there are none.
    """
    items = [parameters] if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable) else list(parameters)
    if needs_names and any(isinstance(item, Tensor) for item in items):
        raise ValueError("exclude goes by names: pass model.named_parameters(), not model.parameters()")
    pairs = [("", item) if isinstance(item, Tensor) else item for item in items]
    if not all(isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[1], Tensor) for pair in pairs):
        kind = type(parameters).__name__
        raise ValueError(f"parameters must be model.named_parameters() or model.parameters(), got a {kind}")
    return pairs


def _gradients(parameters: Parameters) -> list[Tensor]:
    return [p.grad for _, p in _named(parameters) if p.grad is not None]


def _pattern(exclude: str) -> re.Pattern[str]:
    try:
        return re.compile(exclude)
    except (re.error, TypeError) as error:
        raise ValueError(f"exclude must be a regular expression, got {exclude!r}: {error}") from None


def _check_positive(**thresholds: float) -> None:
    for name, value in thresholds.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
