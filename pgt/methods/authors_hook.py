"""The published algorithm (the paper's Fig. 9, the authors' code), rebuilt to be measured. Not for training.

It recovers p from the gradient that reaches the logits. With a mean loss over N samples and a loss scale S that
gradient is S·(p − q)/N, so that what it takes for p is q + (S/N²)·(p − q): right only where S = N². It works in
the precision of the logits: in fp16 small probabilities are 0 before the power, and stay 0 after it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgt.methods.gradient import full_precision
from pgt.methods.power_grad import check_alpha
from pgt.methods.smoothing import smooth_labels, uniform_epsilon

TOLERANCE = 0.01
"""Of S/N² around 1, beyond which the user is warned."""


def recover_probabilities(grad: Tensor, target: Tensor) -> Tensor:
    """What the algorithm takes for p: grad/N + q.

    Args:
        grad: gradient of the scaled mean loss for the logits, [N, C].
        target: q, [N, C].
    """
    return grad / grad.shape[0] + target


def hook_gradient(grad: Tensor, target: Tensor, alpha: float) -> Tensor:
    """What the algorithm puts in the place of `grad`: N·(p^α/Σp^α − q) with its p; NaN where that is negative.

    Args:
        grad: gradient of the scaled mean loss for the logits, [N, C].
        target: q, [N, C].
        alpha: α.
    """
    powers = recover_probabilities(grad, target) ** alpha
    return (powers / powers.sum(-1, keepdim=True) - target) * grad.shape[0]


class AuthorsHookCrossEntropy(nn.Module):
    """Mean cross-entropy with the published hook on the logits.

    After each backward pass `scale_ratio` holds S/N², as measured from the gradient that came, and `flushed` the
    share of probabilities that are 0 to the algorithm.

    Args:
        alpha: in [0, 1]; at 1 there is no hook (the authors' switch for off is 0, so that theirs has no α = 0).
        label_smoothing, smoothing: as in `power_grad_cross_entropy`.
    """

    def __init__(self, alpha: float, *, label_smoothing: float = 0.0, smoothing: str = "uniform") -> None:
        super().__init__()
        self.alpha = check_alpha(alpha)
        self.label_smoothing = label_smoothing
        self.smoothing = smoothing
        self.scale_ratio: Tensor | None = None
        self.flushed: Tensor | None = None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits [N, C] and class indices [N]."""
        classes = logits.shape[1]
        if self.alpha != 1 and logits.requires_grad:
            q = smooth_labels(target, classes, self.label_smoothing, self.smoothing).to(logits.dtype)
            p = full_precision(logits.detach()).softmax(1)

            def hook(grad: Tensor) -> Tensor:
                self._measure(grad, q, p)
                return hook_gradient(grad, q, self.alpha)

            logits.register_hook(hook)  # type: ignore[no-untyped-call]
        epsilon = uniform_epsilon(self.label_smoothing, classes, self.smoothing)
        return F.cross_entropy(full_precision(logits), target, label_smoothing=epsilon)  # as autocast does

    def _measure(self, grad: Tensor, q: Tensor, p: Tensor) -> None:
        error = p - q.float()
        self.scale_ratio = (grad.float() * error).sum() / (error.square().sum() * grad.shape[0])
        self.flushed = (recover_probabilities(grad, q) == 0).float().mean()

    def diagnostics(self) -> dict[str, Any]:
        """`hook_scale_ratio` (S/N²) and `hook_flushed` (a share) of the last backward pass; waits for the device.

        With a `warning` where S/N² is not 1.
        """
        if self.scale_ratio is None or self.flushed is None:
            return {}
        ratio, flushed = torch.stack([self.scale_ratio, self.flushed]).tolist()
        found = {"hook_scale_ratio": ratio, "hook_flushed": flushed}
        if abs(ratio - 1) <= TOLERANCE:
            return found
        return {**found, "warning": f"S/N² is {ratio:.3g}: the authors' hook computes Eq. 9 only where it is 1"}
