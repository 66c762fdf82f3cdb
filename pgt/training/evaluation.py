"""What a network does on the test set, each sample counted exactly once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pgt.training.precision import Precision
from pgt.types import IGNORE_INDEX, Loader


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, alpha: float, precision: Precision) -> dict[str, float]:
    """Top-1 and top-5 in percent, the mean cross-entropy at z and at α·z, and the mean 2-norm of the logits z.

    Args:
        model: is left in evaluation mode.
        loader: its first epoch is read.
        alpha: of the method the network was trained with: softmax(α·z) are its calibrated probabilities.
        precision: of the forward pass; the metrics are computed in float32 or better.
    """
    model.eval()
    sums: torch.Tensor | None = None
    for batch in loader.epoch(0):
        with precision.autocast():
            logits = model(batch.images)
        kept = batch.labels != IGNORE_INDEX
        batch_sums = _sums(logits[kept], batch.labels[kept], alpha)
        sums = batch_sums if sums is None else sums + batch_sums
    assert sums is not None, "a loader of no batches"
    top1, top5, loss, loss_alpha, norm = (sums / loader.num_samples).tolist()
    return {
        "test_top1": 100 * top1,
        "test_top5": 100 * top5,
        "test_loss": loss,
        "test_loss_alpha": loss_alpha,
        "test_logit_norm": norm,
    }


def _sums(logits: torch.Tensor, labels: torch.Tensor, alpha: float) -> torch.Tensor:
    """Sums over [N, C] logits, in the order of `evaluate`, as float64 [5]."""
    logits = logits.double()
    best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    parts = [
        best[:, 0].sum(),
        best.sum(),
        F.cross_entropy(logits, labels, reduction="sum"),
        F.cross_entropy(alpha * logits, labels, reduction="sum"),
        torch.linalg.vector_norm(logits, dim=1).sum(),
    ]
    return torch.stack([part.double() for part in parts])
