"""scikit-learn's handwritten digits: 1797 images of 8×8 pixels, ten classes, no download."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgt.data.delivery import Delivery
from pgt.data.memory import MemoryLoader
from pgt.types import Loader

SPLIT_SEED = 0
TEST_SHARE = 0.5
SHIFT = 1
"""Pixels by which a training image moves at most, up, down, left or right."""


def load(delivery: Delivery) -> tuple[Loader, Loader]:
    """Training and test loader. The split, stratified by class, is the same for every run seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels)
    train_images, test_images, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    mean, deviation = train_images.mean(), train_images.std()

    def tensor(flat: Tensor) -> Tensor:
        return ((flat - mean) / deviation).float().view(-1, 1, 8, 8).expand(-1, 3, -1, -1).contiguous()

    background = float(-mean / deviation)

    def augment(images: Tensor, indices: np.ndarray, epoch: int) -> Tensor:
        offsets = random_offsets(delivery.seed, epoch, len(train_labels), SHIFT)[indices]
        return shift(images, torch.from_numpy(offsets), background)

    train = MemoryLoader(
        tensor(train_images),
        train_labels.long(),
        10,
        delivery.train_sampler(len(train_labels)),
        delivery,
        augment,
    )
    test = MemoryLoader(tensor(test_images), test_labels.long(), 10, delivery.test_sampler(len(test_labels)), delivery)
    return train, test


def random_offsets(seed: int, epoch: int, num_samples: int, reach: int) -> np.ndarray:
    """Row and column offsets in [0, 2·reach] of every sample of an epoch, [num_samples, 2].

    Keyed by (seed, epoch, sample index) alone, so that no worker or rank changes them.
    """
    return np.random.default_rng([seed, epoch, 1]).integers(0, 2 * reach + 1, (num_samples, 2))


def shift(images: Tensor, offsets: Tensor, background: float) -> Tensor:
    """Pad images [N, 3, H, W] with `background` and crop each at its offset [N, 2], of 0 to twice the padding."""
    n, _, height, width = images.shape
    padded = F.pad(images, (SHIFT,) * 4, value=background)
    offsets = offsets.to(images.device)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    sample = torch.arange(n, device=images.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)
