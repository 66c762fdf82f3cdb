"""Facts about each data set and each network, known without opening or building it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Facts about a data set.

    Attributes:
        title: what a model card calls it.
        samples: training and test samples; None if the number is not fixed.
        classes: None if the number is not fixed.
        image_size: pixels a side as stored; None if the config says it (`data.image_size`).
        in_folders: it is read from <root>/train/<class>/ and <root>/val/<class>/.
        hub: its name on the Hugging Face Hub.
    """

    title: str
    samples: tuple[int, int] | None = None
    classes: int | None = None
    image_size: int | None = None
    in_folders: bool = False
    hub: str | None = None

    @property
    def any_files(self) -> bool:
        """Whether the name stands for whatever files a folder holds, so that a run has to tell which ones."""
        return self.in_folders and self.classes is None


DATA_SETS = {
    "imagenet": Facts("ImageNet-1K", (1_281_167, 50_000), 1000, in_folders=True, hub="imagenet-1k"),
    "tiny_imagenet": Facts("Tiny-ImageNet-200", (100_000, 10_000), 200, in_folders=True, hub="zh-plus/tiny-imagenet"),
    "imagefolder": Facts("an image folder", in_folders=True),
    "cifar10": Facts("CIFAR-10", (50_000, 10_000), 10, image_size=32, hub="cifar10"),
    "cifar100": Facts("CIFAR-100", (50_000, 10_000), 100, image_size=32, hub="cifar100"),
    "digits": Facts("the UCI handwritten digits", (898, 899), 10, image_size=8),
    "synthetic": Facts("random tensors"),
}

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "seresnet18": 11_779_624,
    "seresnet50": 28_088_024,
    "resnet18_nobn": 11_679_912,
    "resnet20": 269_722,
    "resnet20_nobn": 268_346,
    "vgg19_bn": 20_548_392,
}
"""Parameters of each network: with 10 classes for ResNet-20, the CIFAR network, and with 1000 for the others."""

ACTIVATIONS = {
    "resnet18": 11.9e6,
    "resnet34": 16.9e6,
    "resnet50": 43.9e6,
    "resnet101": 64.5e6,
    "seresnet18": 13.4e6,
    "seresnet50": 55.0e6,
    "resnet18_nobn": 6.9e6,
    "resnet20": 37.2e6,
    "resnet20_nobn": 18.8e6,
    "vgg19_bn": 75.0e6,
}
"""Bytes that each network keeps for its backward pass for an image of 224x224 pixels in 16 bits, with the standard
stem."""

STEMS = tuple(name for name in PARAMETERS if not name.startswith(("resnet20", "vgg")))
"""The networks whose stem can be small (`model.stem`)."""

TIMM = "timm/"
"""The names of timm's networks begin like this in a config: `timm/convnext_atto`."""
