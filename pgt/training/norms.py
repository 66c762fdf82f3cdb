"""Batch-norm statistics of groups of samples that lie on different devices or come one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

FIRST, MEAN = "first", "mean"


@contextmanager
def running_statistics(model: nn.Module, rule: str, group: int, groups: int, first_rank: bool) -> Iterator[None]:
    """Within it the running mean and variance of batch norms take in a group's statistics as `rule` says.

    Each group is normalised by its own statistics, as on devices that do not synchronise. The running ones are
    the same in every layout of groups over devices and steps:

    - `first` (the authors' code keeps rank 0's): they follow the first rank's group 0.
    - `mean`: they take in the mean of all groups of a step. A rank weighs its groups alike, here by momentum; the
      mean over ranks is taken before it is needed (`buffers`), which is the same since the average is linear.

    Args:
        group, groups: which group of the rank's part of a step this is, out of how many.
        first_rank: whether this is rank 0.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    updated = rule == MEAN or (group == 0 and first_rank)
    for norm, (momentum, _) in zip(norms, kept, strict=True):
        norm.track_running_stats = updated
        norm.num_batches_tracked = norm.num_batches_tracked if group == 0 else None  # it counts steps
        if rule == MEAN and groups > 1 and momentum is not None:
            # Weights that leave each of the k groups with momentum / k, and what was before with 1 − momentum.
            norm.momentum = momentum / groups / (1 - (groups - 1 - group) * momentum / groups)
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.track_running_stats = True
            norm.momentum, norm.num_batches_tracked = momentum, count


def buffers(model: nn.Module) -> list[Tensor]:
    """The running statistics of all batch norms."""
    norms = (m for m in model.modules() if isinstance(m, _BatchNorm))
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
