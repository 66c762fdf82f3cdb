"""The networks of the paper, as its recipe builds them, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from pgt.core.registry import STEMS
from pgt.models.resnet20 import ResNet20
from pgt.models.vgg19 import VGG19


def _timm(name: str, num_classes: int, normalized: bool = True) -> nn.Module:
    """Build one of timm's networks. The last batch norm of a block is not zeroed: the authors' code never does that.

    If not `normalized`, batch norms become identities. timm's convolutions have no bias, so that only the classifier
    has one.
    """
    import timm  # takes longer to import than torch, and ResNet-20 does not need it

    norm: dict[str, Any] = {} if normalized else {"norm_layer": nn.Identity}
    network: nn.Module = timm.create_model(name, num_classes=num_classes, zero_init_last=False, **norm)
    return network


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": partial(_timm, "resnet18"),
    "resnet34": partial(_timm, "resnet34"),
    "resnet50": partial(_timm, "resnet50"),
    "resnet101": partial(_timm, "resnet101"),
    "seresnet18": partial(_timm, "seresnet18"),
    "seresnet50": partial(_timm, "seresnet50"),
    "resnet18_nobn": partial(_timm, "resnet18", normalized=False),
    "resnet20": ResNet20,
    "resnet20_nobn": partial(ResNet20, normalized=False),
    "vgg19_bn": VGG19,
}
"""num_classes -> network, randomly initialised from torch's global generator. The classifier is `fc`."""


def build(name: str, num_classes: int, stem: str = "standard") -> nn.Module:
    """The network of that name (see `MODELS`) with `num_classes` outputs.

    Args:
        stem: `small`, for images of 32 pixels: a 3×3 convolution of stride 1 and no max-pooling. One of `STEMS` only.
    """
    network: Any = MODELS[name](num_classes)
    if stem == "small":
        assert name in STEMS
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network  # type: ignore[no-any-return]  # Any, for the attributes of timm's networks
