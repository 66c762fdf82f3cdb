"""Reading image files as samples, for every backend. Reader processes import this module, so it must not import torch.

The part of an image that a sample shows is decided here, from the file's header and (seed, epoch, index) alone: it
does not depend on backend, workers, ranks or interruptions.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from pgt.core.errors import InputError
from pgt.core.signals import leave_only_with
from pgt.core.types import IGNORE_INDEX
from pgt.core.words import printable
from pgt.data.image_file import UNREADABLE, bitmap, decode, files_fault, read, why
from pgt.data.sampler import VIEW, Sampler, generator
from pgt.data.tree import Files

CROP_AREA, CROP_RATIO, CROP_ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 100
EVALUATION_RESIZE = 256 / 224
STAND_INS = 100
"""The number of following files that are tried if a file is unreadable."""
_BLANK = bitmap(Image.new("RGB", (1, 1)))


@dataclass(frozen=True)
class View:
    """The part of an image that a sample shows: crop `box`, resize it to `size`, crop at `corner`, flip; in pixels.

    Attributes:
        box: (top, left, height, width) in the image.
        size: (height, width) that the box is resized to.
        corner: (top, left) of the sample in the resized box.
        flip: mirror left and right.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    flip: bool = False


def random_view(height: int, width: int, size: int, rng: np.random.Generator) -> View:
    """Draw a random resized crop, flipped with probability 1/2 (the recipe's training augmentation)."""
    box = crop_box(height, width, rng)
    return View(box, (size, size), flip=bool(rng.random() < 0.5))


def crop_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of a random crop: area 8–100%, ratio 3/4–4/3 drawn on a log scale.

    If 100 draws do not fit into the image, return its centre, as large as the nearer ratio bound allows.
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


def central_view(height: int, width: int, size: int) -> View:
    """Return the centre of the image after its shorter side is resized to 256/224 times the sample's size."""
    short, long = sorted((height, width))
    target = round(size * EVALUATION_RESIZE)
    other = int(target * long / short)  # truncated, not rounded, as torchvision does, which the authors used
    resized = (target, other) if height <= width else (other, target)
    corner = (round((resized[0] - size) / 2), round((resized[1] - size) / 2))
    return View((0, 0, height, width), resized, corner)


@dataclass(frozen=True)
class Sample:
    """An encoded image and the part of it to show.

    Attributes:
        data: a whole image file in a format that every backend decodes.
        label: the class, or `IGNORE_INDEX` for a blank.
        view: the part to show.
        index: the file's index; −1 for a blank.
        unreadable: the index of the unreadable file that this sample replaces, or −1; `fatal` of a file if reading
            cannot go on.
    """

    data: bytes
    label: int
    view: View
    index: int = -1
    unreadable: int = -1


def fatal(index: int) -> int:
    """Mark the index of a file as one that stops the run, by a number below −1; or take this mark away."""
    return -2 - index


@dataclass(frozen=True)
class Reader:
    """Reads samples by (epoch, index).

    An unreadable file becomes a blank without a label. If unreadable files are left out of a training set, the next
    readable file replaces it. In both cases `Sample.unreadable` holds its index. If none of the next `STAND_INS` files
    can be read, or the disk and not a file is at fault, it is a blank that stops the run.

    Attributes:
        files: the files of the split.
        size: side of a sample in pixels.
        seed: for the augmentation; None for an evaluation, without augmentation.
        replace: replace an unreadable file by the next readable one.
        broken: indices of files that are known to be unreadable.
        odd: indices of files that Pillow decodes and a backend may not; the backend gets them as bitmaps.
    """

    files: Files
    size: int
    seed: int | None
    replace: bool = False
    broken: set[int] = field(default_factory=set)
    odd: set[int] = field(default_factory=set)

    def sample(self, epoch: int, index: int) -> Sample:
        """Read sample `index` (−1: padding) as `epoch` shows it."""
        if index < 0:
            return self._blank()
        stand_ins = STAND_INS if self.replace and self.seed is not None else 0
        for offset in range(1 + stand_ins):
            place = (index + offset) % len(self.files)
            if place in self.broken:
                continue
            try:
                data, height, width = read(self.files.path(place), decoded=place in self.odd)
            except UNREADABLE as error:
                if files_fault(error) or self.is_bad(place):
                    continue
                return self._blank(fatal(place))  # another file would replace it now, and not the next time
            if self.seed is None:
                view = central_view(height, width, self.size)
            else:
                view = random_view(height, width, self.size, generator(VIEW, self.seed, epoch, index))
            return Sample(data, int(self.files.labels[place]), view, place, index if offset else -1)
        return self._blank(fatal(index) if stand_ins else index)

    def set_aside(self, indices: set[int], error: Exception) -> list[int]:
        """Find out why a backend failed to decode a group of files.

        The files that Pillow cannot decode either are remembered as broken. If there are none, the whole group is
        remembered as odd: the backend gets it as bitmaps from now on.

        Args:
            indices: of the files; −1 is padding.
            error: what the backend raised.

        Returns:
            The indices of the broken files.

        Raises:
            Exception: `error`, if all of the files are odd already: the files are not the cause.
        """
        broken = [index for index in sorted(indices - {-1}) if self._error(index) is not None]
        self.broken.update(broken)
        if not broken:
            if indices <= self.odd:
                raise error
            self.odd.update(indices)
        return broken

    def is_bad(self, index: int) -> bool:
        """Return whether an unreadable file is itself to blame: it still cannot be read, and not for the disk."""
        error = self._error(index)
        return error is not None and files_fault(error)

    def complaint(self, index: int, row: bool = False) -> InputError:
        """Make the error that names the unreadable file `index` and the reason.

        Args:
            row: the files behind it cannot be read either, so that none can replace it.
        """
        error, image = self._error(index), printable(self.files.path(index))
        if error is None:
            return InputError(
                f"the image {image} could not be read before, and now it can: if you have mended it, run "
                "`pgt data verify` again; if not, is the disk all right?"
            )
        if row and files_fault(error):
            count = min(1 + STAND_INS, len(self.files))
            return InputError(
                f"cannot read {count} files in a row, the image {image} ({why(error)}) and those behind it: mend or "
                "remove them (`pgt data verify` finds them all)"
            )
        return InputError(
            f"cannot read the image {image}: {why(error)}; mend or remove it, or leave such files out by "
            "data.on_bad_file=skip (`pgt data verify` finds them all)"
        )

    def _error(self, index: int) -> Exception | None:
        """Read and decode a file again; returns the error, if there is one."""
        try:
            decode(self.files.path(index))
        except UNREADABLE as error:
            return error.with_traceback(None)  # its frames would keep the loader and its workers alive
        return None

    def _blank(self, unreadable: int = -1) -> Sample:
        return Sample(_BLANK, IGNORE_INDEX, View((0, 0, 1, 1), (self.size, self.size)), unreadable=unreadable)


class Stream:
    """One rank's groups of all epochs as an endless sequence, from which DALI requests them one by one.

    Args:
        start: position in the sequence (from 0) of the group that answers the first request.
    """

    def __init__(self, reader: Reader, sampler: Sampler, start: int) -> None:
        self.reader, self.sampler, self.start = reader, sampler, start
        self._owner = os.getpid()
        self._parts: dict[int, np.ndarray] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle in a process that reads ahead for DALI."""
        vars(self).update(state)
        leave_only_with(self._owner)

    def _group(self, epoch: int, place: int) -> np.ndarray:
        """Return the indices of a group; keeps the parts of this epoch and the one before."""
        if epoch not in self._parts:
            self._parts = {e: part for e, part in self._parts.items() if e == epoch - 1}
            self._parts[epoch] = self.sampler.part(epoch)
        group: np.ndarray = self._parts[epoch][place]
        return group

    def __call__(self, request: int) -> tuple[list[np.ndarray], *tuple[np.ndarray, ...]]:
        """Answer request number `request` (from 0) of DALI.

        A group's values are arrays with a row a sample, because DALI takes a millisecond of the training process for
        a hundred arrays.

        Returns:
            The bytes of the N files; then, for all of them, the box's corner [N, 2] and shape [N, 2]; the resized
            size [N, 2]; the crop's corner, down and across, as fractions of the room for it; flip; label; index of
            the unreadable file; [N] each.
        """
        epoch, place = divmod(self.start + request, self.sampler.steps_per_epoch * self.sampler.groups_per_step)
        samples = [self.reader.sample(epoch, index) for index in self._group(epoch, place).tolist()]
        views = [sample.view for sample in samples]
        room = np.array([view.size for view in views]) - self.reader.size
        corner = np.array([view.corner for view in views]) / np.maximum(room, 1)
        return (
            [np.frombuffer(sample.data, np.uint8) for sample in samples],
            np.array([view.box[:2] for view in views], np.int32),
            np.array([view.box[2:] for view in views], np.int32),
            np.array([view.size for view in views], np.float32),
            corner[:, 0].astype(np.float32),
            corner[:, 1].astype(np.float32),
            np.array([view.flip for view in views], np.int32),
            np.array([sample.label for sample in samples], np.int64),
            np.array([sample.unreadable for sample in samples], np.int64),
        )
