"""Batch-norm statistics of groups of samples that lie on different devices or come one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

FIRST, MEAN = "first", "mean"


@contextmanager
def running_statistics(model: nn.Module, rule: str, group: int, groups: int, first_rank: bool) -> Iterator[None]:
    """Within it the running mean and variance of batch norms take in a group's statistics as `rule` says.

    Each group is normalised by its own statistics, as on devices that do not synchronise. The running ones are
    the same in every layout of groups over devices and steps:

    - `first` (the authors' code keeps rank 0's): they follow the first rank's group 0.
    - `mean`: they take in the mean of all groups of a step. A rank weighs its groups alike, here after each of them;
      the mean over ranks is taken before it is needed (`buffers`), which is the same since the average is linear.

    The weights are no momentum of the modules: compiled networks would be compiled again for each group of a step.
    The backward pass belongs within, too: autograd does not let go before of the buffers that the forward pass saw.

    Args:
        group, groups: which group of the rank's part of a step this is, out of how many.
        first_rank: whether this is rank 0.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    counts = [norm.num_batches_tracked for norm in norms]
    weighed = [norm for norm in norms if norm.momentum is not None] if rule == MEAN and groups > 1 else []
    running = [buffer for norm in weighed for buffer in (norm.running_mean, norm.running_var)]
    before = [buffer.clone() for buffer in running]
    updated = rule == MEAN or (group == 0 and first_rank)
    for norm in norms:
        norm.track_running_stats = updated
        norm.num_batches_tracked = norm.num_batches_tracked if group == 0 else None  # it counts steps
    try:
        yield
    finally:
        for norm, count in zip(norms, counts, strict=True):
            norm.track_running_stats, norm.num_batches_tracked = True, count
    if running:
        # These leave each of the k groups with momentum / k in the end, and what was before with 1 − momentum.
        weights = [1 / (groups - (groups - 1 - group) * norm.momentum) for norm in weighed for _ in range(2)]
        torch._foreach_copy_(running, torch._foreach_lerp(before, running, weights))


def buffers(model: nn.Module) -> list[Tensor]:
    """The running statistics of all batch norms."""
    norms = (m for m in model.modules() if isinstance(m, _BatchNorm))
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
