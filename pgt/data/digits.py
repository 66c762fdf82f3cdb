"""scikit-learn's handwritten digits: 1797 images of 8×8 pixels, ten classes, no download."""

from __future__ import annotations

import torch
from torch import Tensor

from pgt.core.types import Loader
from pgt.data.delivery import Delivery
from pgt.data.memory import CropAndFlip, MemoryLoader

SPLIT_SEED = 0
TEST_SHARE = 0.5
BRIGHTEST = 16
SHIFT = 1
"""Pixels by which a training image moves at most, up, down, left or right."""


def load(delivery: Delivery) -> tuple[Loader, Loader]:
    """Training and test loader. The split, stratified by class, is the same for every run seed."""
    train_images, test_images, train_labels, test_labels = _split()
    mean, deviation = train_images.mean(), train_images.std()

    def tensor(flat: Tensor) -> Tensor:
        return ((flat - mean) / deviation).float().view(-1, 1, 8, 8).expand(-1, 3, -1, -1).contiguous()

    background = (-mean / deviation).float().expand(3)
    train = MemoryLoader(
        tensor(train_images),
        train_labels.long(),
        10,
        delivery.train_sampler(len(train_labels)),
        delivery,
        CropAndFlip(delivery.seed, len(train_labels), SHIFT, background, flip=False),
    )
    test = MemoryLoader(tensor(test_images), test_labels.long(), 10, delivery.test_sampler(len(test_labels)), delivery)
    return train, test


def normalisation() -> tuple[float, float]:
    """Mean and deviation of the training set's pixels, where 0 is the darkest value and 1 the brightest."""
    train_images = _split()[0] / BRIGHTEST
    return train_images.mean().item(), train_images.std().item()


def _split() -> list[Tensor]:
    """Training and test images [N, 64] of values from 0 to `BRIGHTEST`, training and test labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels)
    return [torch.from_numpy(part) for part in parts]
