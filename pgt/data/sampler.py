"""The sampler: which samples make up which batch, as a function of (seed, epoch, rank, world size) without state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ORDER, VIEW, SHIFT = 1, 2, 3
"""Purposes of random numbers: the first part of a generator's key."""


def generator(purpose: int, *key: int) -> np.random.Generator:
    """Make a random generator that depends only on a purpose and a key such as (seed, epoch)."""
    return np.random.default_rng([purpose, *key])


@dataclass(frozen=True)
class Sampler:
    """Cuts each epoch's order into global batches, and each of those into groups for each rank.

    The order of an epoch is one permutation of the whole set, the same for any world size. A global batch is
    `global_batch` consecutive entries of it; rank r of w takes the r-th of its w equal parts, in groups of
    `group` samples. A group is a micro-batch: the samples of one forward pass on one rank, which share batch-norm
    statistics. So the same samples meet in the same groups however many ranks share the work.

    Attributes:
        num_samples: size of the set.
        global_batch: samples of one optimizer step over all ranks; for evaluation, of one round.
        group: samples of one `Batch`; `global_batch` is a multiple of `group` × `world_size`.
        seed: of the permutations.
        training: shuffle, and make every batch full: the last one is dropped (`drop_last`) or filled up from
            the epoch's start. Otherwise keep the order of the set and pad the last batch with −1, so that
            each sample comes exactly once.
        drop_last: see `training`.
        rank, world_size: whose part this is.

    Raises:
        ValueError: parts that do not divide evenly, or a set smaller than one batch that would be dropped.
    """

    num_samples: int
    global_batch: int
    group: int
    seed: int = 0
    training: bool = True
    drop_last: bool = True
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.global_batch % (self.group * self.world_size):
            raise ValueError(
                f"a batch of {self.global_batch} does not divide into groups of {self.group} on {self.world_size} ranks"
            )
        if self.steps_per_epoch == 0:
            raise ValueError(f"{self.num_samples} samples are fewer than one batch of {self.global_batch}")

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""
        if self.training and self.drop_last:
            return self.num_samples // self.global_batch
        return -(-self.num_samples // self.global_batch)

    @property
    def groups_per_step(self) -> int:
        """Groups of one rank's part of a global batch."""
        return self.global_batch // (self.group * self.world_size)

    def order(self, epoch: int) -> np.ndarray:
        """Return the sample indices of an epoch over all ranks, [steps_per_epoch · global_batch]; −1 is padding."""
        length = self.steps_per_epoch * self.global_batch
        if not self.training:
            return np.pad(np.arange(self.num_samples), (0, length - self.num_samples), constant_values=-1)
        permutation = generator(ORDER, self.seed, epoch).permutation(self.num_samples)
        return np.resize(permutation, length)

    def part(self, epoch: int) -> np.ndarray:
        """Return this rank's groups of an epoch in order, [groups, group]."""
        parts = self.order(epoch).reshape(self.steps_per_epoch, self.world_size, -1, self.group)
        return parts[:, self.rank].reshape(-1, self.group)
