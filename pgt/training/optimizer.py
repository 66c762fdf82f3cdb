"""The optimizer of the recipe: SGD with Nesterov momentum."""

from __future__ import annotations

import torch
from torch import nn


def build(model: nn.Module, momentum: float, weight_decay: float, fused: bool) -> torch.optim.SGD:
    """Make the optimizer. Weight decay skips biases and other one-dimensional parameters; the schedule sets the rate.

    Args:
        fused: use one kernel for all parameters, which also spares the gradient scaler a host synchronisation.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=fused)
    for p in parameters if momentum else ():
        # The first step gives the same result with a zero buffer as without one. Without one, the fused kernel leaves
        # an uninitialised buffer behind if the gradient scaler skips that step (torch 2.11 to 2.15).
        sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
