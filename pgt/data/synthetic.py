"""Random images made once in memory, to test and time a trainer whose data cost nothing."""

from __future__ import annotations

import torch

from pgt.core.types import Loader
from pgt.data.delivery import Delivery
from pgt.data.memory import MemoryLoader


def load(delivery: Delivery, num_samples: int, num_classes: int, image_size: int) -> tuple[Loader, Loader]:
    """Make a training and a test loader of the same images (standard normal) and labels (uniform), seeded by 0."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_samples, 3, image_size, image_size, generator=generator)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    train = MemoryLoader(images, labels, num_classes, delivery.train_sampler(num_samples), delivery)
    test = MemoryLoader(images, labels, num_classes, delivery.test_sampler(num_samples), delivery)
    return train, test
