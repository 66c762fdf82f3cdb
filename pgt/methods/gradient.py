"""The backward pass of PowerGrad: (p′ − q) from log p, for every kind of target."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

INSTEAD = "use surrogate_cross_entropy, which is made of ordinary PyTorch operations"
TWICE = (
    "power_grad_cross_entropy has no second derivative with respect to the logits or the target: its backward pass "
    "returns p′ − q, which is not the gradient of its value (only the derivative with respect to the incoming gradient "
    f"exists: torch.autograd.grad(..., inputs=weights)); {INSTEAD}"
)


def refuse_make_fx(logits: Tensor) -> None:
    """Raise a RuntimeError if make_fx traces the loss: its graph has the operations below autograd.

    Trained later, that graph would have the gradient of the value, which is plain cross-entropy's. AOTAutograd, which
    traces functional tensors, is fine: it traces the backward pass with the loss.
    """
    if get_proxy_mode() is not None and not isinstance(logits, FunctionalTensor):
        raise RuntimeError("make_fx keeps the value of this loss and not its gradient: trace the network without it")


def is_transformed(logits: Tensor) -> bool:
    """Whether the loss is computed within a transform of torch.func or in forward mode."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad.unpack_dual(logits).tangent is not None


def is_short(x: Tensor) -> bool:
    """Whether `x` is in 16 bits."""
    return x.dtype in (torch.float16, torch.bfloat16)


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32 if it is in 16 bits."""
    return x.float() if is_short(x) else x


def powers_of(log_p: Tensor, alpha: float) -> Tensor:
    """p^α from log p, in a new tensor; 0 if p = 0, whatever α. Their sum lies in [1, C^(1−α)]: no overflow."""
    if alpha < torch.finfo(log_p.dtype).tiny:
        return torch.where(log_p == -torch.inf, 0.0, log_p.mul(0.0).add_(1.0))  # NaN stays NaN
    return log_p.mul(alpha).exp_()


def _per_position(grad_loss: Tensor, reduction: str) -> Tensor:
    """The incoming gradient in a shape that multiplies [N, C, d1, ...]."""
    return grad_loss.unsqueeze(1) if reduction == "none" else grad_loss


def _per_class(weight: Tensor, ndim: int) -> Tensor:
    """[C] as [1, C, 1, ...] of `ndim` dimensions."""
    return weight.view(1, -1, *[1] * (ndim - 2))


class CompiledPowerGrad(torch.autograd.Function):
    """Cross-entropy whose gradient uses p', for torch.compile, which supports only first derivatives in reverse
    mode.

    Saves log p, as cross-entropy does, or 16-bit logits as they came. Target probabilities and weights come in the
    precision of the loss, class indices as int64.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
        return _forward(ctx, logits, target, weight, options)[0]

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        saved, target, weight = ctx.saved_tensors
        grad = _gradient(saved, target, grad_loss, weight, *ctx.options).to(saved.dtype)
        by_target = None
        if ctx.needs_input_grad[1]:
            by_target = _target_gradient(saved, grad_loss, weight, ctx.options[1], ctx.options[-1])
        return grad, by_target, *[None] * 5


class PowerGrad(torch.autograd.Function):
    """The eager version: also differentiable with respect to the incoming gradient; raises for the derivatives that
    would be wrong or missing.

    Its second output, log p, is used by nobody: as an output, the saved tensor knows that it depends on the logits, so
    that a second derivative with respect to them raises instead of missing silently.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, *options: Any
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return _forward(ctx, logits, target, weight, options)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_log_p: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_log_p is not None:
            raise RuntimeError(TWICE)
        if grad_loss is None:
            return (None,) * 7
        if not torch.is_grad_enabled():
            try:
                return CompiledPowerGrad.backward(ctx, grad_loss)
            except RuntimeError as error:
                if "vmap" not in str(error):  # a batch of incoming gradients: nothing is multiplied by one in place
                    raise
        saved, target, weight = ctx.saved_tensors
        _, epsilon, ignore_index, reduction = ctx.options
        with torch.no_grad():
            ones = torch.ones(grad_loss.shape, dtype=grad_loss.dtype, device=grad_loss.device)
            unit = _gradient(saved, target, ones, weight, *ctx.options)
        grad = _Once.apply(unit, saved, target) * _per_position(grad_loss, reduction)  # it is linear in what comes in
        if not target.is_floating_point():
            grad = torch.where((target != ignore_index).unsqueeze(1), grad, 0.0)  # what comes in may be infinite
        by_target = None
        if ctx.needs_input_grad[1]:
            once = _Once.apply(saved.detach(), saved)  # −log p does not depend on the target
            by_target = _target_gradient(once, grad_loss, weight, epsilon, reduction)
        return grad.to(saved.dtype), by_target, *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> NoReturn:
        raise RuntimeError(f"power_grad_cross_entropy has no forward-mode derivative: {INSTEAD}")


def _forward(
    ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, options: tuple[float, float, int, str]
) -> tuple[Tensor, Tensor]:
    """The cross-entropy and log p; saves what the backward pass needs. Options: α, ε, ignore_index, reduction."""
    _, epsilon, ignore_index, reduction = options
    z = full_precision(logits)
    log_p = z.log_softmax(1)
    if epsilon or target.is_floating_point():  # the softmax of log p is p
        loss = F.cross_entropy(
            log_p, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon
        )
    else:
        loss = F.nll_loss(log_p, target, weight, ignore_index=ignore_index, reduction=reduction)
    ctx.save_for_backward(log_p if z is logits else logits, target, weight)
    ctx.options = options
    return loss, log_p


def _gradient(
    saved: Tensor,
    target: Tensor,
    grad_loss: Tensor,
    weight: Tensor | None,
    alpha: float,
    epsilon: float,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """Gradient of the loss with respect to the logits, in float32 or better, from log p or 16-bit logits."""
    z = full_precision(saved)
    powers = powers_of(saved if z is saved else z.log_softmax(1), alpha)
    if target.is_floating_point():
        return _soft_gradient(powers, target, grad_loss, epsilon, weight, reduction)
    return _hard_gradient(powers, target, grad_loss, epsilon, weight, ignore_index, reduction)


def _target_gradient(saved: Tensor, grad_loss: Tensor, weight: Tensor | None, epsilon: float, reduction: str) -> Tensor:
    """Gradient of the loss with respect to the target: −log p times the weights, the same for every α."""
    z = full_precision(saved)
    log_p = saved if z is saved else z.log_softmax(1)
    scale = (epsilon - 1) * _per_position(grad_loss, reduction)
    if weight is not None:
        scale = scale * _per_class(weight, log_p.ndim)
    return log_p * (scale / (log_p.numel() // log_p.shape[1]) if reduction == "mean" else scale)


def _hard_gradient(
    powers: Tensor,
    target: Tensor,
    grad_loss: Tensor,
    epsilon: float,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """mass·p' − q, written over `powers`. q is `spread` on each class, `on_target` more on class y, `mass` in all."""
    kept = (target != ignore_index).unsqueeze(1)
    index = kept * target.unsqueeze(1)  # any class does if the target is ignored: q is 0 there
    if reduction == "none":
        grad_loss = grad_loss.unsqueeze(1)
    elif reduction == "mean":
        grad_loss = grad_loss / (kept if weight is None else kept * weight[index]).sum()
    scale = torch.where(kept, grad_loss, 0.0)  # what comes for an ignored one may be infinite
    on_target = mass = scale if weight is None else scale * weight[index]
    if epsilon:
        spread = scale * (epsilon / powers.shape[1])
        on_target = on_target * (1 - epsilon)
        if weight is not None:
            spread = spread * _per_class(weight, powers.ndim)
            mass = on_target + spread.sum(1, keepdim=True)
    grad = powers.mul_(mass / powers.sum(1, keepdim=True))
    if epsilon:
        grad.sub_(spread)
    return grad.scatter_add_(1, index, -on_target)


def _soft_gradient(
    powers: Tensor, target: Tensor, grad_loss: Tensor, epsilon: float, weight: Tensor | None, reduction: str
) -> Tensor:
    """(mass·p' − q) in the place of `powers`, for a target q of the shape of the logits and any mass."""
    if epsilon:
        target = target * (1 - epsilon) + epsilon / powers.shape[1]
    if weight is not None:
        target = target * _per_class(weight, powers.ndim)
    grad = powers.mul_(target.sum(1, keepdim=True) / powers.sum(1, keepdim=True)).sub_(target)
    if reduction == "none":
        return grad.mul_(grad_loss.unsqueeze(1))
    positions = grad.numel() // grad.shape[1] if reduction == "mean" else 1
    return grad.mul_(grad_loss / positions)


class _Once(torch.autograd.Function):
    """The identity on `value`, whose backward pass raises: `value` was computed from `sources` outside the graph, so
    that a derivative through it would silently be missing."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *sources: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> NoReturn:
        raise RuntimeError(TWICE)
