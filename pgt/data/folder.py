"""ImageNet-style folders through PIL and torchvision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from pgt.data.delivery import Delivery
from pgt.data.sampler import Sampler
from pgt.data.tree import Files, read_tree
from pgt.environment import cpus
from pgt.errors import InputError
from pgt.types import IGNORE_INDEX, Batch, Loader

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_AREA, CROP_RATIO, CROP_ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 100
EVALUATION_RESIZE = 256 / 224


def load(delivery: Delivery, root: str, image_size: int, workers: int, interpolation: str) -> tuple[Loader, Loader]:
    """Loaders of `<root>/train` and `<root>/val`.

    Training: random resized crop (linear, not antialiased) and flip. Evaluation: resize with PIL's
    `interpolation` to a shorter side of 256 for images of 224, in that proportion for others, and centre crop.

    Raises:
        InputError: a folder that is missing or empty, or splits whose classes differ.
    """
    train_files, test_files, classes = read_tree(Path(root))
    train_view = partial(augmented, size=image_size, seed=delivery.seed)
    test_view = partial(centred, size=image_size, interpolation=interpolation)
    train_sampler = delivery.train_sampler(len(train_files))
    test_sampler = delivery.test_sampler(len(test_files))
    blank = torch.zeros(3, image_size, image_size, dtype=torch.uint8)
    return (
        FolderLoader(Views(train_files, train_view, blank), len(classes), train_sampler, delivery, workers),
        FolderLoader(Views(test_files, test_view, blank), len(classes), test_sampler, delivery, workers),
    )


class Views(Dataset[tuple[Tensor, int]]):
    """Decoded and cropped uint8 images [3, S, S] by (epoch, index); index −1 is padding."""

    def __init__(
        self,
        files: Files,
        view: Callable[[Image.Image, tuple[int, int]], Tensor],
        blank: Tensor,
    ) -> None:
        self.files, self.view, self.blank = files, view, blank

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        if key[1] < 0:
            return self.blank, IGNORE_INDEX
        file, label = self.files[key[1]]
        try:
            with Image.open(file) as image:
                return self.view(image.convert("RGB"), key), label
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"cannot read the image {file}: {error}; replace or remove it") from None


class FolderLoader:
    """A `Loader` over image files, decoded in worker processes that live through all epochs."""

    def __init__(self, views: Views, num_classes: int, sampler: Sampler, delivery: Delivery, workers: int) -> None:
        self.num_classes = num_classes
        self.num_samples = len(views.files)
        self.steps_per_epoch = sampler.steps_per_epoch
        self.groups_per_step = sampler.groups_per_step
        self._delivery = delivery
        self._groups = _EpochGroups(sampler)
        self._batches = DataLoader(
            views,
            batch_sampler=self._groups,
            num_workers=min(workers, cpus()),
            persistent_workers=workers > 0,
            pin_memory=delivery.device.type == "cuda",
        )
        on_device = {"device": delivery.device, "dtype": torch.float32}
        self._mean = torch.tensor(MEAN, **on_device).view(3, 1, 1) * 255
        self._deviation = torch.tensor(DEVIATION, **on_device).view(3, 1, 1) * 255

    def epoch(self, index: int) -> Iterator[Batch]:
        self._groups.epoch = index
        for images, labels in self._read():
            images = images.to(self._delivery.device, non_blocking=True)
            images = (images.float() - self._mean) / self._deviation
            yield Batch(self._delivery.images(images), labels.to(self._delivery.device, non_blocking=True))

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            yield from self._batches
        except InputError as error:  # a worker process sends its traceback along
            raise InputError(str(error).splitlines()[-1].removeprefix("pgt.errors.InputError: ")) from None


class _EpochGroups:
    """The sampler's groups of the epoch that is set, as (epoch, index) keys."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.epoch = sampler, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for group in self.sampler.groups(self.epoch):
            yield [(self.epoch, int(index)) for index in group]

    def __len__(self) -> int:
        return self.sampler.steps_per_epoch * self.sampler.groups_per_step


def augmented(image: Image.Image, key: tuple[int, int], size: int, seed: int) -> Tensor:
    """A random resized crop, flipped with probability 1/2: uint8 [3, size, size].

    The randomness is keyed by `seed` and the (epoch, index) `key`, so that no worker or rank changes it.
    """
    rng = np.random.default_rng([seed, *key])
    top, left, height, width = crop_box(image.height, image.width, rng)
    view = TF.resized_crop(
        TF.pil_to_tensor(image),
        top,
        left,
        height,
        width,
        [size, size],
        InterpolationMode.BILINEAR,
        antialias=False,
    )
    return TF.horizontal_flip(view) if rng.random() < 0.5 else view


def crop_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: area 8–100%, ratio 3/4–4/3 drawn on a log scale.

    After 100 attempts that do not fit, the centre, as large as the nearer ratio bound allows.
    """
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*CROP_AREA)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, round(height * CROP_RATIO[1]))
    h = min(height, round(width / CROP_RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def centred(image: Image.Image, key: tuple[int, int], size: int, interpolation: str) -> Tensor:
    """The whole image resized, then its centre: uint8 [3, size, size]."""
    image = TF.resize(image, [round(size * EVALUATION_RESIZE)], InterpolationMode(interpolation))
    return TF.pil_to_tensor(TF.center_crop(image, [size, size]))
