"""The UCI handwritten digits: 1797 images of 8×8 pixels, ten classes, part of this package.

`digits.npz` holds the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998;
CC BY 4.0, see `digits.LICENSE`) and one split of it into halves, stratified by class:

- `images`: uint8 [1797, 8, 8], values from 0 to 16; `labels`: uint8 [1797].
- `train`, `test`: int16 [898] and [899], indices of the images of each half in the order in which they are used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgt.core.types import Loader
from pgt.data.delivery import Delivery
from pgt.data.memory import CropAndFlip, MemoryLoader

FILE = Path(__file__).with_name("digits.npz")
CLASSES = 10
BRIGHTEST = 16
SHIFT = 1
"""The most pixels by which a training image is moved up, down, left or right."""


def load(delivery: Delivery) -> tuple[Loader, Loader]:
    """Make the training and the test loader. The split is the same for every seed of a run."""
    (train_images, train_labels), (test_images, test_labels) = _half("train"), _half("test")
    mean, deviation = train_images.mean(), train_images.std()

    def normalised(images: Tensor) -> Tensor:
        return ((images - mean) / deviation).float()[:, None].expand(-1, 3, -1, -1).contiguous()

    background = (-mean / deviation).float().expand(3)
    augment = CropAndFlip(delivery.seed, len(train_labels), SHIFT, background, flip=False)
    train, test = delivery.train_sampler(len(train_labels)), delivery.test_sampler(len(test_labels))
    return (
        MemoryLoader(normalised(train_images), train_labels, CLASSES, train, delivery, augment),
        MemoryLoader(normalised(test_images), test_labels, CLASSES, test, delivery),
    )


def normalisation() -> tuple[float, float]:
    """Return mean and standard deviation of the training pixels, with the brightest value as 1."""
    images = _half("train")[0] / BRIGHTEST
    return images.mean().item(), images.std().item()


def _half(name: str) -> tuple[Tensor, Tensor]:
    """Read the images, float64 [N, 8, 8] from 0 to `BRIGHTEST`, and the labels, int64 [N], of `train` or `test`."""
    with np.load(FILE) as arrays:
        chosen = arrays[name]
        images, labels = arrays["images"][chosen], arrays["labels"][chosen]
    return torch.from_numpy(images).double(), torch.from_numpy(labels).long()
