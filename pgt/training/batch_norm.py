"""Running batch-norm statistics if one optimizer step covers several groups of samples (several ranks, or gradient
accumulation)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

FIRST, MEAN = "first", "mean"


@contextmanager
def running_statistics(model: nn.Module, rule: str, group: int, groups: int, first_rank: bool) -> Iterator[None]:
    """Make batch norms update their running mean and variance by `rule` within this context.

    Each group is normalised by its own statistics, as on devices that do not synchronise. The running statistics are
    the same for every layout of the groups over devices and steps:

    - `first`: they follow group 0 of rank 0, whose statistics the authors' code keeps.
    - `mean`: they follow the mean over all groups of a step. Each rank averages its own groups here. The mean over
      ranks is taken before the statistics are used (see `buffers`), which is the same since averaging is linear.

    The context must enclose the backward pass, too, since autograd refers to the buffers of the forward pass until
    then. The weights of the mean are applied here and not through the modules' momentum, since a new momentum would
    make torch.compile compile the network again for each group.

    Args:
        group, groups: index of the group in this rank's part of a step, and number of groups.
        first_rank: whether this is rank 0.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    counts = [norm.num_batches_tracked for norm in norms]
    weighed = [norm for norm in norms if norm.momentum is not None] if rule == MEAN and groups > 1 else []
    running = [buffer for norm in weighed for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
    before = [buffer.clone() for buffer in running]
    updated = rule == MEAN or (group == 0 and first_rank)
    for norm in norms:
        norm.track_running_stats = updated
        norm.num_batches_tracked = norm.num_batches_tracked if group == 0 else None  # counts steps, not groups
    try:
        yield
    finally:
        for norm, count in zip(norms, counts, strict=True):
            norm.track_running_stats, norm.num_batches_tracked = True, count
    if running:
        # After k groups, each of them has the weight momentum / k, and the value from before the step 1 − momentum.
        weights = [1 / (groups - (groups - 1 - group) * (norm.momentum or 0)) for norm in weighed for _ in range(2)]
        torch._foreach_copy_(running, torch._foreach_lerp(before, running, weights))


def buffers(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of all batch norms."""
    norms = (m for m in model.modules() if isinstance(m, _BatchNorm))
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
