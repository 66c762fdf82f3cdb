"""Number formats of training."""

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
        """Of the images: the format that the first convolution computes in."""
        formats = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
        return formats.get(self.name, torch.float32)

    def apply(self, model: nn.Module) -> nn.Module:
        """The network with its parameters in this format's storage, and matmuls set to it."""
        torch.backends.cuda.matmul.allow_tf32 = self.name == "tf32"
        torch.backends.cudnn.allow_tf32 = self.name == "tf32"
        return model.double() if self.name == "fp64" else model

    def autocast(self) -> AbstractContextManager[None]:
        """The context of forward pass and loss; does nothing in full precision."""
        mixed = self.name in ("bf16", "fp16")
        return torch.autocast(self.device, self.dtype if mixed else None, enabled=mixed)

    def scaler(self, initial: float, growth_interval: int) -> torch.amp.GradScaler:
        """A gradient scaler that is live in fp16 only.

        Args:
            initial: loss scale of the first step.
            growth_interval: good steps in a row after which the scale is doubled.
        """
        enabled = self.name == "fp16"
        return torch.amp.GradScaler(self.device, initial, growth_interval=growth_interval, enabled=enabled)
