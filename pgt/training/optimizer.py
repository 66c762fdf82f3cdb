"""SGD as the recipe has it."""

from __future__ import annotations

import torch
from torch import nn


def build(model: nn.Module, momentum: float, weight_decay: float, device: torch.device) -> torch.optim.SGD:
    """Nesterov SGD; weight decay skips biases and one-dimensional parameters. The schedule sets the rate."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=device.type == "cuda")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
