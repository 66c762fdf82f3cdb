"""The form in which a run wants its batches: device, precision and sizes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgt.core.errors import InputError
from pgt.core.machine import cpus
from pgt.data.sampler import Sampler

EVALUATION_BATCH = 256
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels in [0, 1], by channel."""


@dataclass(frozen=True)
class Delivery:
    """The settings of a run that its loaders need.

    Attributes:
        device, dtype: of the delivered images; labels are int64.
        global_batch: samples of one optimizer step, over all ranks.
        local_batch: samples of one group, a micro-batch: the samples of one forward pass on one rank, which share
            batch-norm statistics; None: the whole part of a rank.
        seed: for order and augmentation.
        drop_last: leave out the last, partial training batch.
        rank, world_size: which rank's part of the data is delivered.
        cpus: how many CPUs this rank may use for decoding.
        evaluation_batch: the largest number of samples in a test batch.
    """

    device: torch.device
    dtype: torch.dtype
    global_batch: int
    local_batch: int | None
    seed: int
    drop_last: bool
    rank: int = 0
    world_size: int = 1
    cpus: int = field(default_factory=cpus)
    evaluation_batch: int = EVALUATION_BATCH

    def images(self, x: Tensor) -> Tensor:
        """Move images to the device, in the training precision and memory format."""
        return x.to(self.device, self.dtype, non_blocking=True, memory_format=torch.channels_last)

    def train_sampler(self, num_samples: int) -> Sampler:
        """Return the shuffling sampler of a training set; raises InputError if the set is smaller than a batch."""
        try:
            return Sampler(
                num_samples,
                self.global_batch,
                self.local_batch or self.global_batch // self.world_size,
                self.seed,
                drop_last=self.drop_last,
                rank=self.rank,
                world_size=self.world_size,
            )
        except ValueError as error:
            raise InputError(
                f"{error}: lower recipe.global_batch, set data.drop_last=false, or name an experiment"
            ) from None

    def test_sampler(self, num_samples: int) -> Sampler:
        """Return the sampler of a test set: in order, each sample exactly once."""
        group = min(self.evaluation_batch, -(-num_samples // self.world_size))
        return Sampler(
            num_samples,
            group * self.world_size,
            group,
            training=False,
            rank=self.rank,
            world_size=self.world_size,
        )
