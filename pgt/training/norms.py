"""Batch-norm statistics under gradient accumulation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def running_statistics(model: nn.Module, updated: bool) -> Iterator[None]:
    """Within it the running mean and variance of batch norms are left alone unless `updated`.

    Each group is normalised by its own statistics; the running ones follow group 0, so that they are the same
    in every layout of groups over devices and steps.
    """
    norms = [] if updated else [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
