"""A network or a loss that is not the project's, tried on two blank images before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pgt.config.rules import needs_groups
from pgt.config.schema import Config, ImageFolder, Synthetic
from pgt.core.errors import InputError, one_line
from pgt.core.registry import DATA_SETS, PARAMETERS
from pgt.core.types import Loss
from pgt.training.precision import Precision

REFUSALS = (AssertionError, RuntimeError, ValueError)
"""The errors of networks that cannot take images of a size."""


def try_network(config: Config, model: nn.Module, classes: int, precision: Precision) -> bool:
    """Try a network that is not one of the paper's, or any on groups of one image, as in training and in evaluation.

    The network stays on its device. Its buffers and torch's random numbers are as they were.

    Returns:
        Whether it has trainable parameters that the logits do not depend on, for which DDP must be prepared.

    Raises:
        InputError: it has batch norm and the recipe no groups, or it does not make logits of the data's images.
    """
    count = min(config.recipe.local_batch or config.recipe.global_batch, 2)
    if config.model.name in PARAMETERS and count > 1:
        return False
    if config.recipe.local_batch is None and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise InputError(needs_groups(config.model.name, config.recipe))
    data, device = config.data, next(model.parameters()).device
    size = data.image_size if isinstance(data, (ImageFolder, Synthetic)) else DATA_SETS[data.name].image_size
    assert size is not None
    images = torch.zeros(count, 3, size, size, device=device, dtype=precision.dtype)
    parameters, unused = [p for p in model.parameters() if p.requires_grad], False
    with _as_it_was(model, device), precision.autocast():
        for training in (True, False):
            try:
                with torch.set_grad_enabled(training):
                    logits = model.train(training)(images)
            except REFUSALS as error:
                what = f"images of {size} pixels" if count > 1 else f"groups of one image of {size} pixels"
                raise InputError(f"model ({config.model.name}) cannot take {what}: {one_line(error)}") from error
            _check("model", config.model.name, logits, (count, classes))
            if training and logits.requires_grad:
                try:
                    logits.sum().backward()  # not autograd.grad, which reentrant checkpoints do not allow
                except REFUSALS as error:
                    raise InputError(f"model ({config.model.name}) cannot be trained: {one_line(error)}") from error
                unused = any(parameter.grad is None for parameter in parameters)
                for parameter in parameters:
                    parameter.grad = None
    return unused


def try_loss(config: Config, loss: Loss, classes: int, device: torch.device) -> None:
    """Try a loss of the user's own.

    Raises:
        InputError: it does not return one number that depends on the logits, or has parameters to train.
    """
    if config.method.loss is None:
        return
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise InputError(
            f"method.loss ({config.method.loss.name}) has parameters, and the network's alone are trained: put them in "
            "the network, or make them buffers"
        )
    logits = torch.zeros(2, classes, device=device, requires_grad=True)
    with _as_it_was(loss, device):
        value = loss(logits, torch.zeros(2, dtype=torch.int64, device=device))
    _check("method.loss", config.method.loss.name, value, ())
    if not value.requires_grad:
        raise InputError(f"method.loss ({config.method.loss.name}) returned a number that has no gradient")


@contextmanager
def _as_it_was(tried: object, device: torch.device) -> Iterator[None]:
    """A context that changes neither torch's random numbers nor the buffers of what is tried."""
    module = tried if isinstance(tried, nn.Module) else nn.Module()
    before = [buffer.clone() for buffer in module.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for buffer, value in zip(module.buffers(), before, strict=True):  # which may be other tensors by now
            buffer.detach_().copy_(value)


def _check(key: str, name: str, found: object, shape: tuple[int, ...]) -> None:
    if not isinstance(found, Tensor) or found.shape != shape:
        got = f"one of {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"{key} ({name}) must return a tensor of shape {list(shape)}, not {got}")
