"""The networks of the paper, as its recipe builds them, by name, and all others of timm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from pgt.core.registry import STEMS, TIMM
from pgt.core.types import is_own
from pgt.models.resnet20 import ResNet20
from pgt.models.timm_networks import create, facts
from pgt.models.vgg19 import VGG19

MODELS: dict[str, Callable[[int], nn.Module]] = {
    **{
        name: partial(create, name, zero_init_last=False)
        for name in ("resnet18", "resnet34", "resnet50", "resnet101", "seresnet18", "seresnet50")
    },
    "resnet18_nobn": partial(create, "resnet18", zero_init_last=False, norm_layer=nn.Identity),
    "resnet20": ResNet20,
    "resnet20_nobn": partial(ResNet20, normalized=False),
    "vgg19_bn": VGG19,
}
"""num_classes -> network, randomly initialised from torch's global generator. The classifier is `fc`.

The last batch norm of a block is not zeroed, since the authors' code never does that. timm's convolutions have no bias,
so that without batch norm only the classifier has one.
"""


def build(name: str, num_classes: int, stem: str = "standard") -> nn.Module:
    """The network of that name with `num_classes` outputs.

    Args:
        name: one of `MODELS`, or `timm/<name>` for any network of timm, as timm builds it.
        stem: `small`, for images of 32 pixels: a 3×3 convolution of stride 1 and no max-pooling. One of `STEMS` only.
    """
    if name.startswith(TIMM):
        return create(name.removeprefix(TIMM), num_classes)
    network: Any = MODELS[name](num_classes)
    if stem == "small":
        assert name in STEMS
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network  # type: ignore[no-any-return]  # Any, for the attributes of timm's networks


def interpolation(name: str) -> str:
    """The interpolation by which timm resizes the images of an evaluation for its network `timm/<name>`.

    Raises:
        InputError: timm has no such network.
    """
    return "bilinear" if facts(name).get("interpolation") == "bilinear" else "bicubic"


def classifiers(network: nn.Module) -> tuple[str, ...]:
    """The names of the modules that make logits of features.

    timm says so of its networks, of which a few have two. In other networks it is `fc`, or else the last linear layer;
    the result is empty if there is none.
    """
    modules = {name: module for name, module in network.named_modules() if is_own(name)}
    said = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or "fc"
    found = tuple(name for name in ((said,) if isinstance(said, str) else said) if name in modules)
    return found or tuple(name for name, module in modules.items() if isinstance(module, nn.Linear))[-1:]
