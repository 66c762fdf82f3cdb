"""A network or a loss that is not the project's, tried on two blank images before anything is written."""

from __future__ import annotations

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


def try_network(config: Config, model: nn.Module, classes: int, precision: Precision) -> None:
    """Try a network that is not one of the paper's, on the device that it is on. Leaves torch's random numbers alone.

    Raises:
        InputError: it has batch norm and the recipe no groups, or it does not make logits of the data's images.
    """
    if config.model.name in PARAMETERS:
        return
    if config.recipe.local_batch is None and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise InputError(needs_groups(config.model.name, config.recipe))
    data, device = config.data, next(model.parameters()).device
    size = data.image_size if isinstance(data, (ImageFolder, Synthetic)) else DATA_SETS[data.name].image_size
    assert size is not None
    images = torch.zeros(2, 3, size, size, device=device, dtype=precision.dtype)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), precision.autocast():
        try:
            logits = model.eval()(images)
        except REFUSALS as error:
            key = f"model ({config.model.name})"
            raise InputError(f"{key} cannot take images of {size} pixels: {one_line(error)}") from error
    _check("model", config.model.name, logits, (2, classes))


def try_loss(config: Config, loss: Loss, classes: int, device: torch.device) -> None:
    """Try a loss of the user's own.

    Raises:
        InputError: it does not return one number that depends on the logits.
    """
    if config.method.loss is None:
        return
    logits = torch.zeros(2, classes, device=device, requires_grad=True)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        value = loss(logits, torch.zeros(2, dtype=torch.int64, device=device))
    _check("method.loss", config.method.loss.name, value, ())
    if not value.requires_grad:
        raise InputError(f"method.loss ({config.method.loss.name}) returned a number that has no gradient")


def _check(key: str, name: str, found: object, shape: tuple[int, ...]) -> None:
    if not isinstance(found, Tensor) or found.shape != shape:
        got = f"one of {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"{key} ({name}) must return a tensor of shape {list(shape)}, not {got}")
