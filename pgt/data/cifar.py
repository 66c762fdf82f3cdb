"""CIFAR-10 and CIFAR-100 from the official archives, held in memory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, extract_archive

from pgt.core.errors import InputError
from pgt.core.types import Loader
from pgt.data.delivery import DEVIATION, MEAN, Delivery
from pgt.data.memory import CropAndFlip, MemoryLoader
from pgt.data.sampler import Sampler

SETS: dict[str, type[datasets.CIFAR10]] = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
PADDING = 4


def load(delivery: Delivery, name: str, root: str) -> tuple[Loader, Loader]:
    """Make the training and the test loader.

    A training image is padded by 4 pixels, cropped to 32 at a random place, and flipped with probability 1/2. Pixels
    are normalised by the mean and deviation of ImageNet.

    Args:
        delivery: where the batches go, and in which precision.
        name: `cifar10` or `cifar100`.
        root: folder that holds the official archive, which is unpacked there, or the unpacked files.

    Raises:
        InputError: neither is there, or it is damaged.
    """
    _unpack(SETS[name], Path(root))
    train, test = (_read(SETS[name], Path(root), training) for training in (True, False))
    mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)

    def loader(data: datasets.CIFAR10, sampler: Sampler, augment: CropAndFlip | None = None) -> Loader:
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2)
        images = (pixels / 255 - mean[:, None, None]) / deviation[:, None, None]
        return MemoryLoader(images, torch.tensor(data.targets), len(data.classes), sampler, delivery, augment)

    augment = CropAndFlip(delivery.seed, len(train), PADDING, -mean / deviation, flip=True)
    training = loader(train, delivery.train_sampler(len(train)), augment)
    return training, loader(test, delivery.test_sampler(len(test)))


def _unpack(kind: type[datasets.CIFAR10], root: Path) -> None:
    """Unpack the archive unless that has been done. Several processes may do so at the same time.

    Raises:
        InputError: there is no archive, or it is damaged.
    """
    archive, folder = root / kind.filename, root / kind.base_folder
    if folder.is_dir():
        return
    if not archive.is_file():
        raise InputError(f"neither {archive} nor {folder}: put the official archive there, from {kind.url}")
    if not check_integrity(str(archive), kind.tgz_md5):
        raise InputError(f"{archive} is damaged: put the official archive there, from {kind.url}")
    with TemporaryDirectory(prefix=".unpacking-", dir=root) as temporary:
        extract_archive(str(archive), temporary)
        with suppress(OSError):  # another process was faster
            (Path(temporary) / kind.base_folder).rename(folder)


def _read(kind: type[datasets.CIFAR10], root: Path, training: bool) -> datasets.CIFAR10:
    """Read the unpacked files; raises InputError if they are damaged."""
    try:
        return kind(root, train=training)
    except RuntimeError:
        raise InputError(
            f"{root / kind.base_folder} is damaged: remove it, and put the official archive beside it, from {kind.url}"
        ) from None
