"""CIFAR-10 and CIFAR-100 from the official archives, held in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from pgt.data.delivery import DEVIATION, MEAN, Delivery
from pgt.data.memory import CropAndFlip, MemoryLoader
from pgt.errors import InputError
from pgt.types import Loader

SETS: dict[str, type[datasets.CIFAR10]] = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
PADDING = 4


def load(delivery: Delivery, name: str, root: str) -> tuple[Loader, Loader]:
    """Training (crop of 32 out of 4 pixels of padding, flip) and test loader, ImageNet mean and deviation.

    Args:
        delivery: what the run wants.
        name: `cifar10` or `cifar100`.
        root: folder of the official archive, which is unpacked there, or of what came out of it.

    Raises:
        InputError: neither is there, or it is damaged.
    """
    train, test = (_read(SETS[name], Path(root), training) for training in (True, False))
    mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)

    def tensor(data: datasets.CIFAR10) -> Tensor:
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2)
        return (pixels / 255 - mean[:, None, None]) / deviation[:, None, None]

    augment = CropAndFlip(delivery.seed, len(train), PADDING, -mean / deviation, flip=True)
    loaders = []
    for data, sampler, change in (
        (train, delivery.train_sampler(len(train)), augment),
        (test, delivery.test_sampler(len(test)), None),
    ):
        labels = torch.tensor(data.targets)
        loaders.append(MemoryLoader(tensor(data), labels, len(train.classes), sampler, delivery, change))
    return loaders[0], loaders[1]


def _read(kind: type[datasets.CIFAR10], root: Path, training: bool) -> datasets.CIFAR10:
    archive = root / kind.filename
    whole = archive.is_file() and check_integrity(str(archive), kind.tgz_md5)
    try:
        return kind(root, train=training, download=whole)  # a whole archive is unpacked, never fetched
    except RuntimeError:
        state = f"{archive} is damaged" if archive.is_file() else f"neither {archive} nor {root / kind.base_folder}"
        raise InputError(f"{state}: put the official archive there, from {kind.url}") from None
