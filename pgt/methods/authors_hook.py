"""The published algorithm (the paper's Fig. 9, the authors' code), rebuilt to be measured, not to train with.

It recovers p from the gradient that reaches the logits. For a mean loss over N samples and a loss scale S, that
gradient is S·(p − q)/N. So what the algorithm takes for p is q + (S/N²)·(p − q), which is p only if S = N². It works in
the precision of the logits: in fp16, small probabilities are 0 before the power, and stay 0.
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
"""The largest distance of S/N² from 1 without a warning."""


def recover_probabilities(grad: Tensor, target: Tensor) -> Tensor:
    """Compute what the algorithm takes for p: grad/N + q.

    Args:
        grad: gradient of the scaled mean loss for the logits, [N, C].
        target: q, [N, C].
    """
    return grad / grad.shape[0] + target


def hook_gradient(grad: Tensor, target: Tensor, alpha: float) -> Tensor:
    """Compute what the algorithm replaces `grad` with: N·(p^α/Σp^α − q) for its p; NaN if its p is negative.

    Args:
        grad: gradient of the scaled mean loss for the logits, [N, C].
        target: q, [N, C].
        alpha: α.
    """
    powers = recover_probabilities(grad, target) ** alpha
    return (powers / powers.sum(-1, keepdim=True) - target) * grad.shape[0]


class AuthorsHookCrossEntropy(nn.Module):
    """Mean cross-entropy with the published hook on the logits.

    After each backward pass `scale_ratio` holds S/N², measured from the gradient that arrived, and `flushed` the share
    of probabilities that the algorithm sees as 0.

    Args:
        alpha: in [0, 1]; at 1 there is no hook. (In the authors' code 0 means off, so that it has no α = 0.)
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
        """Compute the loss from logits [N, C] and class indices [N]. torch.compile leaves it as it is."""
        # torch.compile would skip roundings to fp16, and they are what is studied. A decorator would import it at once.
        loss: Tensor = torch.compiler.disable(type(self)._loss)(self, logits, target)
        return loss

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        classes = logits.shape[1]
        if self.alpha != 1 and logits.requires_grad:
            q = smooth_labels(target, classes, self.label_smoothing, self.smoothing).to(logits.dtype)
            p = full_precision(logits.detach()).softmax(1)

            def hook(grad: Tensor) -> Tensor:
                self._measure(grad, q, p)
                return hook_gradient(grad, q, self.alpha)

            logits.register_hook(hook)
        epsilon = uniform_epsilon(self.label_smoothing, classes, self.smoothing)
        return F.cross_entropy(full_precision(logits), target, label_smoothing=epsilon)  # as autocast does

    def _measure(self, grad: Tensor, q: Tensor, p: Tensor) -> None:
        error = p - q.float()
        self.scale_ratio = (grad.float() * error).sum() / (error.square().sum() * grad.shape[0])
        self.flushed = (recover_probabilities(grad, q) == 0).float().mean()

    def diagnostics(self) -> dict[str, Any]:
        """Return `hook_scale_ratio` (S/N²) and `hook_flushed` (a share) of the last backward pass.

        Adds a `warning` if S/N² is not 1. Waits for the device.
        """
        if self.scale_ratio is None or self.flushed is None:
            return {}
        ratio, flushed = torch.stack([self.scale_ratio, self.flushed]).tolist()
        found = {"hook_scale_ratio": ratio, "hook_flushed": flushed}
        if abs(ratio - 1) <= TOLERANCE:
            return found
        return {**found, "warning": f"S/N² is {ratio:.3g}: the authors' hook computes Eq. 9 only if it is 1"}


class EmulatedHookCrossEntropy(AuthorsHookCrossEntropy):
    """`AuthorsHookCrossEntropy` as it runs in fp16 at the one right loss scale, S = N², for a network in any precision.

    Logits are rounded to fp16, and their gradient is scaled by N², rounded, replaced by the hook and unscaled: what
    truncation does to the method, without a GPU. The network's own fp16 is left out.
    """

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.alpha == 1:  # no hook
            return super()._loss(logits, target)
        scale = len(logits) ** 2
        own = logits.view_as(logits)  # a hook on the logits themselves would change the gradient of other losses, too
        loss = super()._loss(own.half(), target)
        if not loss.requires_grad:
            return loss
        factor = torch.ones_like(loss)

        def scaled(incoming: Tensor) -> Tensor:
            factor.copy_(incoming / scale)
            return torch.full_like(incoming, scale)

        loss.register_hook(scaled)
        own.register_hook(lambda grad: grad * factor)
        return loss
