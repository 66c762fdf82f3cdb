"""Image files through torchvision: libjpeg-turbo for training, Pillow for evaluation, as the authors evaluated."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from pgt.core.signals import leave_only_with
from pgt.core.types import Batch
from pgt.data.delivery import DEVIATION, MEAN, Delivery
from pgt.data.image_file import UNREADABLE, opened, rgb
from pgt.data.loader import FileLoader
from pgt.data.reader import Reader, View
from pgt.data.sampler import Sampler
from pgt.data.workers import Helpers, fork_server

Decoded = tuple[Tensor, int, int]
"""Pixels uint8 [S, S, 3], label, index of the unreadable file that this stands for or −1."""


class FolderLoader(FileLoader):
    """A `Loader` over image files, decoded in worker processes that live through all epochs.

    Args:
        reader: reads the files of the split.
        sampler: decides which samples come when.
        delivery: where the batches go, and in which precision.
        interpolation: `bilinear` or `bicubic`, for the resize before evaluation.
        workers: processes that decode; 0: this process decodes.
        skip: leave unreadable files out; otherwise the first one stops the run.
    """

    def __init__(
        self, reader: Reader, sampler: Sampler, delivery: Delivery, interpolation: str, workers: int, skip: bool
    ) -> None:
        super().__init__(reader, sampler, workers, skip)
        self._delivery = delivery
        self._keys = _Keys(sampler)
        self._helpers = Helpers()
        on_gpu = delivery.device.type == "cuda"
        self._side = torch.cuda.Stream(delivery.device) if on_gpu else None
        self._batches = DataLoader(
            _Pixels(reader, interpolation),
            batch_sampler=self._keys,
            num_workers=workers,
            multiprocessing_context=fork_server() if workers else None,
            persistent_workers=workers > 0,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # torch's global one serves dropout, and its state is restored on resume
            worker_init_fn=partial(_serve, os.getpid()),
        )
        self._mean, self._deviation = (
            255 * torch.tensor(value, device=delivery.device).repeat(reader.size) for value in (MEAN, DEVIATION)
        )
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(delivery.device))

    def groups(self, epoch: int, first: int) -> Iterator[Batch]:
        self._keys.epoch, self._keys.first = epoch, first
        runs = self._batches._iterator is not None  # the first epoch starts the workers, which live on
        with self._helpers.awaited() if runs else self._helpers.started():
            batches = iter(self._batches)
        for _ in range(len(self._keys)):
            with self._helpers.awaited():
                images, labels, unreadable = next(batches)
            self.note(unreadable)
            yield self._delivered(images, labels)

    def close(self) -> None:
        """End the worker processes while their queues are open.

        If the garbage collector frees the loader, after an exception for example, it closes the queues first. The
        workers would then not be told to end, and waiting for them would not return.
        """
        super().close()
        iterator, self._batches._iterator = self._batches._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]

    def _delivered(self, images: Tensor, labels: Tensor) -> Batch:
        """Move a batch to the device. On a GPU the copy runs on its own stream, during the computation before it."""
        device = self._delivery.device
        if self._side is None:
            return self._on_device(images, labels)
        with torch.cuda.stream(self._side):
            batch = self._on_device(images, labels)
        now = torch.cuda.current_stream(device)
        now.wait_stream(self._side)
        for tensor in (batch.images, batch.labels):
            tensor.record_stream(now)  # keeps its memory from the next copy until this stream has used it
        return batch

    def _on_device(self, images: Tensor, labels: Tensor) -> Batch:
        """Normalise uint8 [N, S, S, 3] on the device. Whole rows at a time are several times faster on a CPU."""
        device = self._delivery.device
        pixels = images.to(device, non_blocking=True).float()
        pixels.flatten(2).sub_(self._mean).div_(self._deviation)
        return Batch(self._delivery.images(pixels.permute(0, 3, 1, 2)), labels.to(device, non_blocking=True))


def _serve(owner: int, worker: int) -> None:
    """Prepare a worker of the process `owner`."""
    leave_only_with(owner)


class _Keys:
    """The sampler's groups as (epoch, index) keys, from group `first` of `epoch` on."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.epoch, self.first = sampler, 0, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for group in self.sampler.part(epoch)[self.first :]:
            yield [(epoch, int(index)) for index in group]

    def __len__(self) -> int:
        return self.sampler.steps_per_epoch * self.sampler.groups_per_step - self.first


class _Pixels(Dataset[Decoded]):
    """Decoded samples, looked up by (epoch, index)."""

    def __init__(self, reader: Reader, interpolation: str) -> None:
        self.reader, self.interpolation = reader, InterpolationMode(interpolation)

    def __getitem__(self, key: tuple[int, int]) -> Decoded:
        sample = self.reader.sample(*key)
        try:
            if self.reader.seed is None:
                pixels = evaluation_pixels(sample.data, sample.view, self.reader.size, self.interpolation)
            else:
                pixels = training_pixels(sample.data, sample.view)
        except UNREADABLE as error:  # the header and the end are fine, but not what lies between
            self.reader.set_aside({sample.index}, error)
            return self[key]
        return pixels.permute(1, 2, 0).contiguous(), sample.label, sample.unreadable


def training_pixels(data: bytes, view: View) -> Tensor:
    """Decode the view of an image, resized bilinearly without antialiasing: uint8 [3, S, S]."""
    pixels = TF.resized_crop(_decoded(data), *view.box, list(view.size), InterpolationMode.BILINEAR, antialias=False)
    flipped: Tensor = TF.horizontal_flip(pixels) if view.flip else pixels
    return flipped


def evaluation_pixels(data: bytes, view: View, size: int, interpolation: InterpolationMode) -> Tensor:
    """Decode the view of an image with Pillow, whose resize is antialiased: uint8 [3, S, S]."""
    with opened(data) as image:
        resized = TF.resize(rgb(image), list(view.size), interpolation)
    pixels: Tensor = TF.pil_to_tensor(TF.crop(resized, *view.corner, size, size))
    return pixels


def _decoded(data: bytes) -> Tensor:
    """Decode an image to uint8 [3, H, W]."""
    if data[:2] == b"\xff\xd8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torchvision 0.29 announces its removal
            pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
            return pixels
    with opened(data) as image:
        pixels = TF.pil_to_tensor(rgb(image))
    return pixels
