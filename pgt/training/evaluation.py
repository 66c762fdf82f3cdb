"""What a network does on the test set, each sample counted exactly once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from pgt.core.errors import InputError
from pgt.core.types import IGNORE_INDEX, Loader
from pgt.training.precision import Precision
from pgt.training.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from torchmetrics import Metric


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    alpha: float,
    precision: Precision,
    ranks: Ranks = ALONE,
    pause: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Top-1 and top-5 in percent, and at z and at α·z the mean cross-entropy and the expected calibration error (15
    bins, in percent). Of each image's logits z the 2-norm, the mean, the largest, and the variance over the classes;
    each a mean over the images.

    Args:
        model: is left in evaluation mode.
        loader: its first epoch is read.
        alpha: of the method the network was trained with: softmax(α·z) are its calibrated probabilities.
        precision: of the forward pass; the metrics are computed in float32 or better.
        ranks: whose parts of the set together are the whole.
        pause: called before each batch; what it raises ends the evaluation there.

    Raises:
        InputError: not one image could be read.
    """
    model.eval()
    sums = torch.zeros(9, dtype=torch.float64, device=next(model.parameters()).device)
    calibration = [_calibration_error(loader.num_classes).to(sums.device) for _ in range(2)]
    for batch in loader.epoch(0):
        pause()
        with precision.autocast():
            logits = model(batch.images)
        kept = (batch.labels != IGNORE_INDEX).nonzero()[:, 0]  # the one wait for the device, and not one an index
        logits, labels = logits[kept].double(), batch.labels[kept]
        if len(labels) == 0:
            continue
        sums += _sums(logits, labels, alpha)
        for error, z in zip(calibration, (logits, alpha * logits), strict=True):
            error.update(z.softmax(1), labels)
    ranks.all_reduce_sum(sums)
    count = sums[0].item()
    if count == 0:
        raise InputError("not one image of the test set can be read")
    ece, ece_alpha = (100 * error.compute().item() for error in calibration)
    top1, top5, loss, loss_alpha, norm, mean, largest, variance = (sums[1:] / count).tolist()
    return {
        "test_top1": 100 * top1,
        "test_top5": 100 * top5,
        "test_loss": loss,
        "test_loss_alpha": loss_alpha,
        "test_logit_norm": norm,
        "test_logit_mean": mean,
        "test_logit_max": largest,
        "test_logit_variance": variance,
        "test_ece": ece,
        "test_ece_alpha": ece_alpha,
    }


def _calibration_error(num_classes: int) -> Metric:
    """Mean distance of confidence from accuracy (Guo et al., arXiv 1706.04599)."""
    from torchmetrics.classification import MulticlassCalibrationError

    return MulticlassCalibrationError(num_classes, n_bins=15, norm="l1", validate_args=False)


def _sums(logits: torch.Tensor, labels: torch.Tensor, alpha: float) -> torch.Tensor:
    """Sums over [N, C] logits of 1, top-1, top-5, loss at z and at α·z, and `logit_statistics`, as float64 [9]."""
    best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    parts = [
        torch.ones_like(labels).sum(),
        best[:, 0].sum(),
        best.sum(),
        F.cross_entropy(logits, labels, reduction="sum"),
        F.cross_entropy(alpha * logits, labels, reduction="sum"),
        *logit_statistics(logits).sum(0),
    ]
    return torch.stack([part.double() for part in parts])


def logit_statistics(logits: torch.Tensor) -> torch.Tensor:
    """Of each sample, [N, C] -> [N, 4] as float64: 2-norm, mean, maximum and variance of its logits."""
    z = logits.double()
    return torch.stack([torch.linalg.vector_norm(z, dim=1), z.mean(1), z.amax(1), z.var(1, correction=0)], dim=1)
