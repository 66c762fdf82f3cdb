"""How a run wants its batches: where, in which precision, how many at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgt.core.errors import InputError
from pgt.core.machine import cpus
from pgt.data.sampler import Sampler

EVALUATION_BATCH = 256
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1], by channel."""


@dataclass(frozen=True)
class Delivery:
    """What the data layer needs to know of a run.

    Attributes:
        device, dtype: of the images it delivers; labels are int64.
        global_batch: samples of one optimizer step.
        local_batch: samples of one `Batch`; None: the whole part of a rank.
        seed: of order and augmentation.
        drop_last: leave out the last, partial training batch.
        rank, world_size: the part of the data that is delivered.
        cpus: that may decode for it.
        evaluation_batch: samples of a test batch, at most.
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
        """`x` on the device, in the training precision and memory format."""
        return x.to(self.device, self.dtype, non_blocking=True, memory_format=torch.channels_last)

    def train_sampler(self, num_samples: int) -> Sampler:
        """Raises InputError where the set is smaller than a batch."""
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
        """In order, each sample exactly once."""
        group = min(self.evaluation_batch, -(-num_samples // self.world_size))
        return Sampler(
            num_samples,
            group * self.world_size,
            group,
            training=False,
            rank=self.rank,
            world_size=self.world_size,
        )
