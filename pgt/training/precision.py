"""The number formats of training."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Precision:
    """One of `fp32`, `tf32`, `bf16`, `fp16`, and `fp64` for tests.

    Attributes:
        name: see above.
        device: `cpu` or `cuda`.
    """

    name: str
    device: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the images, in which the first convolution computes."""
        formats = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
        return formats.get(self.name, torch.float32)

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the network with its parameters stored in this format; also switches TF32 on or off."""
        torch.backends.cuda.matmul.allow_tf32 = self.name == "tf32"
        torch.backends.cudnn.allow_tf32 = self.name == "tf32"
        return model.double() if self.name == "fp64" else model

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context for forward pass and loss; it does nothing unless the format has 16 bits."""
        mixed = self.name in ("bf16", "fp16")
        return torch.autocast(self.device, self.dtype if mixed else None, enabled=mixed)

    def scaler(self, initial: float, growth_interval: int) -> torch.amp.GradScaler:
        """Make a gradient scaler, which does nothing except in fp16.

        Args:
            initial: the loss scale of the first step.
            growth_interval: the number of consecutive good steps after which the scale is doubled.
        """
        enabled = self.name == "fp16"
        return torch.amp.GradScaler(self.device, initial, growth_interval=growth_interval, enabled=enabled)
