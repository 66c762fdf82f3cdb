"""The networks of timm by their names there, and what timm says of them."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from pgt.core.errors import InputError
from pgt.core.registry import TIMM


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Build timm's network of that name, with random weights."""
    import timm  # takes longer to import than torch, and ResNet-20 does not need it

    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    return network


def facts(name: str) -> dict[str, Any]:
    """Return what timm says of a network, by the names of its `pretrained_cfg`: `interpolation`, `classifier`, ...

    Args:
        name: as in a config, `timm/convnext_atto`.

    Raises:
        InputError: timm has no such network.
    """
    import timm
    from timm.models import get_pretrained_cfg, split_model_name_tag

    network = name.removeprefix(TIMM)
    if not timm.is_model(network):
        nearest = difflib.get_close_matches(split_model_name_tag(network)[0], timm.list_models(), n=1)
        hint = f"did you mean {TIMM}{nearest[0]}?" if nearest else "`timm.list_models()` lists them"
        raise InputError(f"timm has no network {network}: {hint}")
    try:
        known = get_pretrained_cfg(network)
    except RuntimeError as error:  # no such weights, as in resnet50.a9_in1k
        raise InputError(f"{name}: {error}; leave out what is after the dot") from None
    return known.to_dict() if known else {}
