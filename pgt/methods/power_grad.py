"""PowerGrad Transform (PGT): cross-entropy whose backward pass uses p^α/Σp^α in place of the softmax p.

Reference: Das et al., "Altering Backward Pass Gradients improves Convergence", arXiv 2111.12495, Eqs. 8, 9.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgt.methods.gradient import (
    INSTEAD,
    CompiledPowerGrad,
    PowerGrad,
    full_precision,
    is_short,
    is_transformed,
    powers_of,
    refuse_make_fx,
)
from pgt.methods.smoothing import check_smoothing, uniform_epsilon

FUNC = f"power_grad_cross_entropy cannot go through torch.func or forward mode: {INSTEAD}"


def power_transform(p: Tensor, alpha: float, dim: int = -1) -> Tensor:
    """Raise probabilities to the power α and renormalise them (Eq. 8).

        p'_i = p_i^α / Σ_j p_j^α

    Args:
        p: probabilities, summing to one along `dim`.
        alpha: in [0, 1]; 1 returns p, 0 the uniform distribution over the entries with p > 0.
        dim: the dimension of the classes.

    Returns:
        p' of the shape of `p`, in float32 or better. An entry that is 0 stays 0.

    Raises:
        ValueError: `alpha` outside [0, 1] or NaN.

    Examples:
        >>> power_transform(torch.tensor([0.64, 0.36]), alpha=0.5)  # 0.8 and 0.6, renormalised
        tensor([0.5714, 0.4286])
    """
    powers = powers_of(full_precision(p).log(), check_alpha(alpha))
    return powers / powers.sum(dim, keepdim=True)


def stationary_threshold(p: Tensor, alpha: float, dim: int = -1) -> Tensor:
    """The probability that the power transform leaves as it is (Lemma 1, Eq. 10).

        (Σ_j p_j^α)^(1/(α−1)),   at α = 1 its limit exp(Σ_j p_j log p_j)

    Entries above it fall and entries below it rise; it does not decrease as α grows (Theorem 1).

    Args:
        p: probabilities, summing to one along `dim`.
        alpha: in [0, 1].
        dim: the dimension of the classes.

    Returns:
        The threshold, of the shape of `p` without `dim`, in float32 or better.

    Raises:
        ValueError: `alpha` outside [0, 1] or NaN.

    Examples:
        >>> stationary_threshold(torch.tensor([0.64, 0.36]), alpha=0.5)
        tensor(0.5102)
    """
    alpha = check_alpha(alpha)
    p = full_precision(p)
    if alpha == 1:
        return torch.xlogy(p, p).sum(dim).exp()
    if alpha < 0.5:
        return powers_of(p.log(), alpha).sum(dim) ** (1 / (alpha - 1))
    excess = (p * ((alpha - 1) * p.log()).expm1()).masked_fill(p == 0, 0.0).sum(dim)  # Σp^α − 1, exact near α = 1
    return (excess.log1p() / (alpha - 1)).exp()


def power_grad_cross_entropy(
    logits: Tensor,
    target: Tensor,
    alpha: float,
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy whose logit gradient is p' − q in place of p − q (Eqs. 8, 9).

    The value is the plain cross-entropy for every α. For α > 0 the gradient is that of CE(α·z, q)/α under the
    same arguments, for any reduction, loss scale and batch split. α = 1 is `cross_entropy` itself.

    Args:
        logits: z, [N, C], [N, C, d1, ...] or [C]; 16-bit logits are computed, and their loss returned, in float32.
        target: class indices [N, d1, ...] or probabilities of the shape of `logits`. Probabilities may require a
            gradient: they get cross-entropy's own, −log p.
        alpha: in [0, 1]; the paper uses 0.05 to 0.3, and 0.92 for one network.
        label_smoothing: ε in [0, 1].
        smoothing: `uniform` gives each class ε/C (PyTorch), `paper` each wrong class ε/(C−1) (Eq. 7).
        weight: [C], a factor for each class.
        ignore_index: a class index that counts nowhere.
        reduction: `none`, `mean` or `sum`, as in `torch.nn.functional.cross_entropy`.

    Returns:
        A scalar, or [N, d1, ...] without reduction. It may be changed in place.

    Raises:
        ValueError: `alpha` outside [0, 1], NaN, or with a gradient; an unknown `smoothing` or `reduction`; a target
            that does not fit the logits; a weight that requires a gradient.
        RuntimeError: for a second derivative with respect to the logits, since p' − q is not the gradient of the
            value (with respect to the incoming gradient, in which p' − q is linear, there is one); in forward mode, by
            torch.func, or through torch.export or make_fx.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
        >>> power_grad_cross_entropy(logits, torch.tensor([0]), alpha=0.25).backward()
        >>> logits.grad  # softmax(0.25·z) − q
        tensor([[-0.5481,  0.2741,  0.2741]])
    """
    alpha = check_alpha(alpha)
    target, weight = prepared(logits, target, weight, reduction)
    if logits.ndim == 1:  # one sample without a batch dimension, as torch takes it
        loss = power_grad_cross_entropy(
            logits.unsqueeze(0), target.unsqueeze(0), alpha, label_smoothing=label_smoothing, smoothing=smoothing,
            weight=weight, ignore_index=ignore_index, reduction=reduction,
        )  # fmt: skip
        return loss.squeeze(0) if reduction == "none" else loss
    epsilon = uniform_epsilon(label_smoothing, logits.shape[1], smoothing)
    if alpha == 1:
        return F.cross_entropy(full_precision(logits), target, weight, ignore_index=ignore_index, reduction=reduction,
                               label_smoothing=epsilon)  # fmt: skip
    return _apply(logits, target, weight, alpha, epsilon, ignore_index, reduction)


def _apply(*arguments: Any) -> Tensor:
    """The loss of `PowerGrad`, or an error that names the surrogate if another derivative is asked for."""
    # In torch 2.11, `is_exporting` is always true within torch.compile; the flag is true only within torch.export.
    if torch.compiler.is_exporting() and getattr(torch.compiler, "_is_exporting_flag", True):
        raise RuntimeError(
            "torch.export keeps the value of power_grad_cross_entropy and not its gradient: export the network without "
            f"its loss, or {INSTEAD}"
        )
    if torch.compiler.is_compiling():
        if is_transformed(arguments[0]):
            raise RuntimeError(FUNC)
        compiled: Tensor = CompiledPowerGrad.apply(*arguments)
        return compiled
    refuse_make_fx(arguments[0])
    try:
        loss: Tensor = PowerGrad.apply(*arguments)[0]
    except RuntimeError as error:
        if "setup_context" in str(error):  # a transform of torch.func
            raise RuntimeError(FUNC) from None
        raise
    return loss


class PowerGradCrossEntropy(nn.Module):
    """`power_grad_cross_entropy` as a module, in the place of `torch.nn.CrossEntropyLoss`.

    Args:
        alpha: in [0, 1]. It may be set during training (`criterion.alpha = 0.5`), compiled or not.
        label_smoothing, smoothing, weight, ignore_index, reduction: see `power_grad_cross_entropy`.

    Raises:
        ValueError: `alpha` outside [0, 1] or NaN, or another argument that is unknown.

    Examples:
        >>> criterion = PowerGradCrossEntropy(alpha=0.25)
        >>> criterion(model(images), labels).backward()
    """

    weight: Tensor | None
    function = staticmethod(power_grad_cross_entropy)

    def __init__(
        self,
        alpha: float,
        *,
        label_smoothing: float = 0.0,
        smoothing: str = "uniform",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.alpha = check_alpha(alpha)
        check_reduction(reduction)
        check_smoothing(label_smoothing, smoothing)
        self.label_smoothing = label_smoothing
        self.smoothing = smoothing
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits `input` [N, C, ...] or [C]; the arguments are named as in PyTorch."""
        return self.function(
            input,
            target,
            self.alpha,
            label_smoothing=self.label_smoothing,
            smoothing=self.smoothing,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, label_smoothing={self.label_smoothing}, smoothing={self.smoothing!r}, "
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}"
        )


def check_alpha(alpha: float) -> float:
    """Return α as a float, or raise a ValueError unless it is one number in [0, 1] without a gradient."""
    if shape := list(getattr(alpha, "shape", ())):
        raise ValueError(f"alpha must be one number, got a tensor of shape {shape}; class weights go in weight=...")
    if isinstance(alpha, Tensor) and alpha.requires_grad:
        raise ValueError("alpha must not require a gradient: PGT defines none for it")
    alpha = float(alpha)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    return alpha


def prepared(logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> tuple[Tensor, Tensor | None]:
    """Target and weight as both losses compute with them: class indices as int64, the rest in the loss's precision.

    Raises:
        ValueError: the losses cannot be computed from these arguments.
    """
    check_reduction(reduction)
    check_target(logits, target)
    if weight is not None and weight.requires_grad:
        raise ValueError("weight must not require a gradient: detach it")
    dtype = torch.float32 if is_short(logits) else logits.dtype
    target = target.to(dtype) if target.is_floating_point() else target.long()
    return target, None if weight is None else weight.to(dtype)


def check_target(logits: Tensor, target: Tensor) -> None:
    """Raise a ValueError that names both shapes unless the target is class indices or probabilities for the logits."""
    if logits.ndim == 0:
        raise ValueError("logits must be [N, C], [N, C, d1, ...] or [C], got one number")
    shapes = f"logits {list(logits.shape)} and target {list(target.shape)}"
    per_class = target.shape == logits.shape
    if target.dtype == torch.bool:
        raise ValueError("target must be class indices or probabilities, got booleans")
    if target.is_floating_point():
        if not per_class:
            raise ValueError(f"target probabilities must have the shape of the logits: {shapes}")
        return
    if per_class and target.ndim:
        raise ValueError(f"target of integers must be class indices, got one number a class (one-hot?): {shapes}; "
                         "pass probabilities as target.float(), or indices as target.argmax(1)")  # fmt: skip
    if target.shape != logits.shape[:1] + logits.shape[2:] and not (logits.ndim == 1 and target.ndim == 0):
        raise ValueError(f"class indices must have the shape of the logits without their classes: {shapes}")


def check_reduction(reduction: str) -> None:
    """Raise a ValueError unless it is one of PyTorch's."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be none, mean or sum, got {reduction!r}")
