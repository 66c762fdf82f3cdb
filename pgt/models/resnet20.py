"""The CIFAR ResNet-20: three stages of 16, 32 and 64 filters for 32-pixel images."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
BLOCKS = 3


class Block(nn.Module):
    """Two 3×3 convolutions and an identity shortcut.

    If the block halves the image and adds channels, the shortcut takes every second pixel and pads the new channels
    with zeros (option A). It has no parameters.
    """

    def __init__(self, inputs: int, outputs: int, normalized: bool) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.padding = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs) if normalized else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs) if normalized else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride == 2:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.padding))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """ResNet-20 for [N, 3, 32, 32], 0.27 M parameters, identity shortcuts of option A.

    Images may have any size from 4 pixels a side. Convolutions are initialised Kaiming normal, fan-out.

    Args:
        num_classes: outputs of the classifier `fc`, the only layer with a bias.
        normalized: whether a batch norm follows each convolution.

    Reference: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2.
    """

    def __init__(self, num_classes: int, normalized: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0]) if normalized else nn.Identity()
        inputs = [WIDTHS[0]] + [width for width in WIDTHS for _ in range(BLOCKS)]
        self.blocks = nn.Sequential(*(Block(i, o, normalized) for i, o in pairwise(inputs)))
        self.fc = nn.Linear(WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        logits: Tensor = self.fc(self.blocks(x).mean((2, 3)))
        return logits
