"""Evaluates a network on the test set and counts each sample exactly once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgt.core.errors import InputError
from pgt.core.types import IGNORE_INDEX, Loader
from pgt.training.precision import Precision
from pgt.training.ranks import ALONE, Ranks

BINS = 15
"""Intervals of confidence, equally wide, for the calibration error."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    alpha: float,
    precision: Precision,
    ranks: Ranks = ALONE,
    pause: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Measure a network on the first epoch of a loader.

    Returns top-1 and top-5 accuracy in percent; for z and for α·z the mean cross-entropy and the expected calibration
    error in percent, where z are the logits; and the 2-norm, mean, maximum and variance over the classes of an image's
    logits, averaged over the images.

    Args:
        model: is left in evaluation mode.
        alpha: α of the method that the network was trained with: softmax(α·z) are its calibrated probabilities.
        precision: of the forward pass; the metrics are computed in float64.
        ranks: each one reads its part of the set.
        pause: called before each batch; an exception that it raises ends the evaluation.

    Raises:
        InputError: not a single image could be read.
    """
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(9, dtype=torch.float64, device=device)
    calibration = torch.zeros(2, 3, BINS, dtype=torch.float64, device=device)
    for batch in loader.epoch(0):
        pause()
        with precision.autocast():
            logits = model(batch.images)
        # a padded sample gets zero logits, of which each sum below is zero: leaving it out would wait for the device
        logits = torch.where((batch.labels != IGNORE_INDEX)[:, None], logits.double(), 0.0)
        sums += _sums(logits, batch.labels, alpha)
        calibration += torch.stack([calibration_sums(z, batch.labels) for z in (logits, alpha * logits)])
    ranks.all_reduce_sum(sums)
    ranks.all_reduce_sum(calibration)
    count = sums[0].item()
    if count == 0:
        raise InputError("not one image of the test set can be read")
    top1, top5, loss, loss_alpha, norm, mean, largest, variance = (sums[1:] / count).tolist()
    ece, ece_alpha = calibration_error(calibration).tolist()
    return {
        "test_top1": 100 * top1,
        "test_top5": 100 * top5,
        "test_loss": loss,
        "test_loss_alpha": loss_alpha,
        "test_logit_norm": norm,
        "test_logit_mean": mean,
        "test_logit_max": largest,
        "test_logit_variance": variance,
        "test_ece": 100 * ece,
        "test_ece_alpha": 100 * ece_alpha,
    }


def calibration_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the samples, the correct ones, and add up the confidences in each bin: float64 [3, BINS].

    The confidence of a sample is its largest probability. A bin includes its lower bound, the last one also 1.

    Args:
        logits: float64 [N, C].
        labels: int64 [N]; samples labelled `IGNORE_INDEX` do not count.
    """
    confidence, predicted = logits.softmax(1).max(1)
    inner_bounds = torch.linspace(0, 1, BINS + 1, dtype=confidence.dtype, device=confidence.device)[1:-1]
    index = torch.bucketize(confidence, inner_bounds, right=True)
    bins = (index[:, None] == torch.arange(BINS, device=index.device)).double()
    counted = (labels != IGNORE_INDEX).double()
    return torch.stack([counted, (predicted == labels).double(), confidence * counted]) @ bins


def calibration_error(sums: Tensor) -> Tensor:
    """Expected calibration error, in [0, 1]: the mean distance of confidence from accuracy over the samples' bins.

    Args:
        sums: what `calibration_sums` returns, added up over all samples: [..., 3, BINS].

    Reference: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.
    """
    counts, correct, confidences = sums.unbind(-2)
    return (correct - confidences).abs().sum(-1) / counts.sum(-1)


def _sums(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Add up 1, top-1, top-5, the loss at z and at α·z, and `logit_statistics` over the samples with a label; [9].

    Args:
        logits: float64 [N, C], zero for a sample without a label.
        labels: int64 [N].
        alpha: α.
    """
    best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    parts = [
        (labels != IGNORE_INDEX).sum(),
        best[:, 0].sum(),
        best.sum(),
        F.cross_entropy(logits, labels, reduction="sum"),
        F.cross_entropy(alpha * logits, labels, reduction="sum"),
        *logit_statistics(logits).sum(0),
    ]
    return torch.stack([part.double() for part in parts])


def logit_statistics(logits: Tensor) -> Tensor:
    """Return 2-norm, mean, maximum and variance of each sample's logits: [N, C] -> float64 [N, 4]."""
    z = logits.double()
    return torch.stack([torch.linalg.vector_norm(z, dim=1), z.mean(1), z.amax(1), z.var(1, correction=0)], dim=1)
