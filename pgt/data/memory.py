"""Loaders of data sets that fit in memory: batches are cut from one tensor on the training device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pgt.core.types import IGNORE_INDEX, Batch
from pgt.data.delivery import Delivery
from pgt.data.loader import GroupLoader
from pgt.data.sampler import SHIFT, Sampler, generator

Augment = Callable[[Tensor, Tensor, int], Tensor]
"""(images [N, 3, H, W], their sample indices [N], epoch) -> images."""


class MemoryLoader(GroupLoader):
    """A `Loader` over tensors.

    Args:
        images: [M, 3, H, W], normalised, float32.
        labels: [M] int64.
        num_classes: C.
        sampler: decides which samples come when.
        delivery: where the batches go, and in which precision.
        augment: changes the images of a batch; None leaves them as they are.
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
        super().__init__(sampler, num_classes)
        self._augment = augment
        self._images = delivery.images(images)
        padded = torch.cat([labels, labels.new_tensor([IGNORE_INDEX])])  # index −1 is the padding's label
        self._labels = padded.to(delivery.device)

    def groups(self, epoch: int, first: int) -> Iterator[Batch]:
        # One copy to the device for the whole epoch, since a copy makes the host wait.
        part = torch.from_numpy(self.sampler.part(epoch)[first:]).to(self._labels.device)
        for picked in part:
            images = self._images[picked]
            if self._augment is not None:
                images = self._augment(images, picked, epoch)
            yield Batch(images, self._labels[picked])


class CropAndFlip:
    """Pads each image, crops it at a random place to its size, and mirrors every other one.

    The random numbers depend on (seed, epoch, sample index) alone: neither ranks nor interruptions change them.

    Args:
        seed: of the run.
        num_samples: size of the set.
        padding: pixels added on each side.
        fill: [3], the colour of the padding.
        flip: mirror with probability 1/2.
    """

    def __init__(self, seed: int, num_samples: int, padding: int, fill: Tensor, flip: bool) -> None:
        self.seed, self.num_samples, self.padding, self.fill, self.flip = seed, num_samples, padding, fill, flip
        self._epoch: tuple[int, torch.device] | None = None

    def __call__(self, images: Tensor, picked: Tensor, epoch: int) -> Tensor:
        offsets, flipped = self._drawn(epoch, images.device)
        images = shift(images, offsets[picked], self.padding, self.fill)
        return torch.where(flipped[picked][:, None, None, None], images.flip(3), images) if self.flip else images

    def _drawn(self, epoch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw the offsets [samples, 2] and flips [samples] of an epoch, or return those drawn before."""
        if self._epoch != (epoch, device):
            rng = generator(SHIFT, self.seed, epoch)
            offsets = torch.from_numpy(rng.integers(0, 2 * self.padding + 1, (self.num_samples, 2)))
            flipped = torch.from_numpy(rng.random(self.num_samples) < 0.5)
            self._epoch, self._draws = (epoch, device), (offsets.to(device), flipped.to(device))
            self.fill = self.fill.to(device)
        return self._draws


def shift(images: Tensor, offsets: Tensor, padding: int, fill: Tensor) -> Tensor:
    """Pad images [N, 3, H, W] with `fill` [3] and crop each at its offset [N, 2], from 0 to twice the padding."""
    n, _, height, width = images.shape
    padded = fill.to(images)[:, None, None].repeat(n, 1, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = images
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    sample = torch.arange(n, device=images.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)
