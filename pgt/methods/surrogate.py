"""PowerGrad Transform as a loss of ordinary PyTorch operations: a second implementation, against which the first is
tested.

Theorem. For α > 0 the gradient p' − q of Eq. 9 is that of CE(softmax(α·z), q)/α: by the chain rule
∂/∂z_i CE(softmax(α·z), q)/α = α·(softmax(α·z)_i − q_i)/α, and softmax(α·z) = p^α/Σp^α. So PGT trains the network
at inverse temperature α, and the calibrated probabilities of what it trains are softmax(α·z), not softmax(z).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pgt.methods.gradient import full_precision, refuse_make_fx
from pgt.methods.power_grad import PowerGradCrossEntropy, check_alpha, prepared
from pgt.methods.smoothing import uniform_epsilon


def surrogate_cross_entropy(
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
    """CE(α·z, q)/α with the plain cross-entropy for its value (NaN where that is infinite).

    Args:
        logits, target, label_smoothing, smoothing, weight, ignore_index, reduction: see `power_grad_cross_entropy`.
        alpha: in (0, 1].

    Raises:
        ValueError: `alpha` is 0, outside [0, 1] or NaN; unknown options; a target that does not fit the logits.
        RuntimeError: within make_fx, which would drop `detach`.
    """
    alpha = check_alpha(alpha)
    target, weight = prepared(logits, target, weight, reduction)
    if alpha == 0:
        raise ValueError("the surrogate has no gradient at alpha = 0: use power_grad_cross_entropy")
    if alpha < 1 and not torch.compiler.is_compiling():  # torch.compile and torch.export keep `detach`
        refuse_make_fx(logits)
    logits = full_precision(logits)
    epsilon = uniform_epsilon(label_smoothing, logits.shape[min(logits.ndim - 1, 1)], smoothing)

    def cross_entropy(z: Tensor, q: Tensor) -> Tensor:
        return F.cross_entropy(z, q, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon)

    # detach, and not no_grad, which leaves forward-mode derivatives
    constant = logits.detach()
    tempered = (cross_entropy(alpha * logits, target) - cross_entropy(alpha * constant, target)) / alpha
    return tempered + cross_entropy(constant, target)  # 0, with the gradient p' − q, and the value, with the target's


class SurrogateCrossEntropy(PowerGradCrossEntropy):
    """`surrogate_cross_entropy` as a module, with the arguments of `PowerGradCrossEntropy`."""

    function = staticmethod(surrogate_cross_entropy)
