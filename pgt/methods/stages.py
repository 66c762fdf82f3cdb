"""Finds the stages of a residual network: where gradient correction has its place."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from torch import nn


@dataclass(frozen=True)
class Stage:
    """A run of residual blocks between two changes of width.

    Attributes:
        first, last: names of its first and its last block.
        convolution: name of the last convolution of the last block: the last one before the stage changes.
        inputs, outputs: channels of the hidden states before the first and behind the last block.
    """

    first: str
    last: str
    convolution: str
    inputs: int
    outputs: int


def find_stages(model: nn.Module) -> list[Stage]:
    """Find the stages of a network by its structure.

    A residual block is a module in an `nn.Sequential` that has convolutions among its direct children. The last of
    them ends its main path: shortcuts and squeeze-and-excitation are modules of their own. A stage is a run of blocks
    whose last convolutions are equally wide. This holds for timm's ResNets and SE-ResNets and for the CIFAR ResNet-20,
    with batch norm or without.

    Raises:
        ValueError: the network has no such blocks.
    """
    sequences = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Sequential)]
    blocks = [
        f"{name}.{index}" for name, blocks in sequences for index, block in blocks.named_children() if _direct(block)
    ]
    if not blocks:
        raise ValueError(f"finds no stages in {type(model).__name__}, which has no residual blocks in an nn.Sequential")
    runs = [list(run) for _, run in groupby(blocks, key=lambda name: stage_between(model, name, name).outputs)]
    return [stage_between(model, run[0], run[-1]) for run in runs]


def stage_between(model: nn.Module, first: str, last: str) -> Stage:
    """Describe the part of a network from one residual block to another, by their names.

    Raises:
        ValueError: the network has no module of such a name, or it has no convolutions among its direct children.
    """
    begin, end = (_direct(_module(model, name)) for name in (first, last))
    for name, found in ((first, begin), (last, end)):
        if not found:
            raise ValueError(f"names {name}, which is no residual block: it has no convolutions as direct children")
    name, convolution = end[-1]
    return Stage(first, last, f"{last}.{name}", begin[0][1].in_channels, convolution.out_channels)


def _direct(module: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """Return the convolutions among the direct children of a module, with their names."""
    return [(name, child) for name, child in module.named_children() if isinstance(child, nn.Conv2d)]


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"names {name}, which {type(model).__name__} does not have") from None
