"""Less memory on the device: activations computed again in the backward pass, and one line if memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pgt.config.schema import Config
from pgt.core.errors import InputError, memory_is_full


def checkpoint_activations(model: nn.Module) -> None:
    """Let each block of the network keep its input only and compute its activations again in the backward pass.

    No number changes. A block is a child of an `nn.Sequential` that is itself a child of the network, as the stages of
    ResNets are, and has layers of its own. A single layer keeps little more than its input, and one that changes its
    input in place, such as `nn.ReLU(inplace=True)` in VGG, cannot be computed again.

    Raises:
        InputError: the network has no such blocks.
    """
    stages = [stage for stage in model.children() if isinstance(stage, nn.Sequential)]
    blocks = [block for stage in stages for block in stage if list(block.children())]
    if not blocks:
        raise InputError("this network has no stages of blocks: leave trainer.checkpoint_activations=false")
    for block in blocks:
        contexts = partial(_contexts, [m for m in block.modules() if isinstance(m, _BatchNorm)])
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


@contextmanager
def explained(config: Config, device: torch.device) -> Iterator[None]:
    """Turn an error of torch or DALI that the device's memory is full into one line that says what needs less of it.

    Raises:
        InputError: the device's memory is full.
    """
    try:
        yield
    except RuntimeError as error:
        if not memory_is_full(error):
            raise
        recipe, trainer = config.recipe, config.trainer
        mends = []
        if not (trainer.checkpoint_activations or trainer.compile):
            mends.append("trainer.checkpoint_activations=true (slower, the same numbers)")
        if trainer.precision in ("fp32", "tf32"):
            mends.append("trainer.precision=bf16")
        mends.append("a smaller recipe.local_batch (another recipe: batch-norm statistics over other groups)")
        raise InputError(
            f"the memory of {device} is full ({config.model.name}, recipe.local_batch={recipe.local_batch}, "
            f"{trainer.precision}): set {', or '.join(mends)}"
        ) from None


def _contexts(norms: list[_BatchNorm]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a block's forward pass and of the one in the backward pass."""
    return nullcontext(), _running_statistics_kept(norms)


@contextmanager
def _running_statistics_kept(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let a second forward pass over the same group leave running statistics as they are."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
