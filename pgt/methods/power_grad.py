"""PowerGrad Transform (PGT): cross-entropy whose backward pass uses p^α/Σp^α in place of the softmax p.

Reference: Das et al., "Altering Backward Pass Gradients improves Convergence", arXiv 2111.12495, Eqs. 8, 9.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgt.methods.gradient import PowerGrad, full_precision, powers_of
from pgt.methods.smoothing import check_smoothing, uniform_epsilon


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
        logits: z, [N, C] or [N, C, d1, ...]; 16-bit logits are computed, and their loss returned, in float32.
        target: class indices [N, d1, ...] or probabilities of the shape of `logits`.
        alpha: in [0, 1]; the paper uses 0.05 to 0.3, and 0.92 for one network.
        label_smoothing: ε in [0, 1].
        smoothing: `uniform` gives each class ε/C (PyTorch), `paper` each wrong class ε/(C−1) (Eq. 7).
        weight: [C], a factor for each class.
        ignore_index: a class index that counts nowhere.
        reduction: `none`, `mean` or `sum`, as in `torch.nn.functional.cross_entropy`.

    Returns:
        A scalar, or [N, d1, ...] without reduction.

    Raises:
        ValueError: `alpha` outside [0, 1] or NaN; an unknown `smoothing` or `reduction`; a target or weight
            that requires a gradient, a target of booleans.
        RuntimeError: when differentiated twice: p' − q is no second derivative of the value.

    Example:
        >>> loss = power_grad_cross_entropy(model(images), labels, alpha=0.25)
        >>> loss.backward()
    """
    alpha = check_alpha(alpha)
    check_reduction(reduction)
    if logits.ndim < 2:
        raise ValueError(f"logits must be [N, C] or [N, C, d1, ...], got {list(logits.shape)}")
    if target.requires_grad or (weight is not None and weight.requires_grad):
        raise ValueError("target and weight must not require a gradient: detach them")
    if target.dtype == torch.bool:
        raise ValueError("target must be class indices or probabilities, got booleans")
    epsilon = uniform_epsilon(label_smoothing, logits.shape[1], smoothing)
    dtype = torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else logits.dtype
    target = target.to(dtype) if target.is_floating_point() else target.long()
    weight = None if weight is None else weight.to(dtype)
    if alpha == 1:
        return F.cross_entropy(logits.to(dtype), target, weight, ignore_index=ignore_index, reduction=reduction,
                               label_smoothing=epsilon)  # fmt: skip
    loss: Tensor = PowerGrad.apply(logits, target, alpha, epsilon, weight, ignore_index, reduction)
    return loss


class PowerGradCrossEntropy(nn.Module):
    """`power_grad_cross_entropy` as a module, in the place of `torch.nn.CrossEntropyLoss`.

    Args:
        alpha: in [0, 1].
        label_smoothing, smoothing, weight, ignore_index, reduction: see `power_grad_cross_entropy`.

    Raises:
        ValueError: `alpha` outside [0, 1] or NaN, or another argument that is unknown.

    Example:
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

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.function(
            logits,
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
    """Return α as a float, or raise a ValueError unless it lies in [0, 1]."""
    alpha = float(alpha)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    return alpha


def check_reduction(reduction: str) -> None:
    """Raise a ValueError unless it is one of PyTorch's."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be none, mean or sum, got {reduction!r}")
