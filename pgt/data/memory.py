"""Sets that fit in memory: batches are cut from one tensor on the training device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from pgt.data.delivery import Delivery
from pgt.data.sampler import Sampler
from pgt.types import IGNORE_INDEX, Batch

Augment = Callable[[Tensor, np.ndarray, int], Tensor]
"""(images [N, 3, H, W], their sample indices [N], epoch) -> images."""


class MemoryLoader:
    """A `Loader` over tensors.

    Args:
        images: [M, 3, H, W], normalised, float32.
        labels: [M] int64.
        num_classes: C.
        sampler: which samples come when.
        delivery: where to, and in which precision.
        augment: changes the images of a batch; None leaves them.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        sampler: Sampler,
        delivery: Delivery,
        augment: Augment | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.num_samples = len(labels)
        self.steps_per_epoch = sampler.steps_per_epoch
        self.groups_per_step = sampler.groups_per_step
        self._sampler, self._augment = sampler, augment
        self._images = delivery.images(images)
        padded = torch.cat([labels, labels.new_tensor([IGNORE_INDEX])])  # index −1 is the padding's label
        self._labels = padded.to(delivery.device)

    def epoch(self, index: int) -> Iterator[Batch]:
        for group in self._sampler.groups(index):
            picked = torch.from_numpy(group).to(self._labels.device)
            images = self._images[picked]
            if self._augment is not None:
                images = self._augment(images, group, index)
            yield Batch(images, self._labels[picked])
