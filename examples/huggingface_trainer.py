"""PGT in Hugging Face's Trainer: `Trainer(model, args, ..., compute_loss_func=power_grad_loss(0.25))`.

For models whose logits and labels pair position by position (image, token or sequence classification).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pgt import power_grad_cross_entropy


def power_grad_loss(alpha: float) -> Callable[..., Tensor]:
    """What Trainer takes as `compute_loss_func`.

    Args:
        alpha: of PGT; 1 is plain cross-entropy.
    """

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs.logits.flatten(0, -2)
        reduction = "mean" if num_items_in_batch is None else "sum"
        value = power_grad_cross_entropy(logits, labels.flatten(), alpha, reduction=reduction)
        return value if num_items_in_batch is None else value / num_items_in_batch  # over accumulated batches

    return loss
