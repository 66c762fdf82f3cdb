"""Image files read, checked, and cut: what every backend draws a sample from. No torch: reader processes import this.

What part of an image becomes a sample is decided here, from the file's header and (seed, epoch, index) alone. So
backends, workers, ranks and an interruption change nothing of it.
"""

from __future__ import annotations

import errno
import io
import math
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pgt.data.sampler import VIEW, Sampler, generator
from pgt.data.tree import Files
from pgt.errors import InputError
from pgt.stopping import leave_with_parent_only
from pgt.text import printable
from pgt.types import IGNORE_INDEX

CROP_AREA, CROP_RATIO, CROP_ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 100
EVALUATION_RESIZE = 256 / 224
DECODED_BY_ALL = {"JPEG", "PNG"}
UNREADABLE = Exception
"""What Pillow and the file system answer with where a file cannot be read: Pillow, with whatever it stumbles over."""
FILES_FAULT = {
    None,
    errno.ENOENT,
    errno.EACCES,
    errno.ELOOP,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ENXIO,
}
"""Error numbers that speak of one file (Pillow's have none), not of a disk that is in trouble."""
STAND_INS = 100
"""Files that are tried in the place of an unreadable one."""
LONGEST = 100
"""Times that an image may be as long as wide: resizing a longer one would take all memory."""


@dataclass(frozen=True)
class View:
    """The part of an image that a sample shows, in pixels: cut `box`, resize it to `size`, cut from `corner`, flip.

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
    """A random resized crop, flipped with probability 1/2 (the recipe's training augmentation)."""
    box = crop_box(height, width, rng)
    return View(box, (size, size), flip=bool(rng.random() < 0.5))


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


def central_view(height: int, width: int, size: int) -> View:
    """The centre of the image resized to a shorter side of 256 for samples of 224, in that proportion for others."""
    short, long = sorted((height, width))
    target = round(size * EVALUATION_RESIZE)
    other = int(target * long / short)  # cut off, not rounded: torchvision's convention, which the authors used
    resized = (target, other) if height <= width else (other, target)
    corner = (round((resized[0] - size) / 2), round((resized[1] - size) / 2))
    return View((0, 0, height, width), resized, corner)


@dataclass(frozen=True)
class Sample:
    """An encoded image and what to do with it.

    Attributes:
        data: a whole image file in one of the formats that every backend decodes.
        label: `IGNORE_INDEX` where it stands for nothing.
        view: what of it to show.
        index: of the file; −1 for a blank.
        unreadable: the index of a file that could not be read and that this stands for, or −1.
    """

    data: bytes
    label: int
    view: View
    index: int = -1
    unreadable: int = -1


@dataclass(frozen=True)
class Reader:
    """Samples by (epoch, index).

    An unreadable file becomes a blank without a label; in a training set from which such files are left out
    it is replaced by the next readable one. Either says so in `Sample.unreadable`.

    Attributes:
        files: the split.
        size: side of a sample in pixels.
        seed: of the augmentation; None: evaluation, no augmentation.
        replace: look for another file in the place of an unreadable one.
        broken: files that are known to be unreadable.
        odd: files that Pillow decodes and a backend may not; it gets them decoded.
    """

    files: Files
    size: int
    seed: int | None
    replace: bool = False
    broken: set[int] = field(default_factory=set)
    odd: set[int] = field(default_factory=set)

    def sample(self, epoch: int, index: int) -> Sample:
        """Sample `index` (−1: padding) as `epoch` shows it."""
        if index < 0:
            return self._blank()
        stand_ins = STAND_INS if self.replace and self.seed is not None else 0
        for offset in range(1 + stand_ins):
            place = (index + offset) % len(self.files)
            if place in self.broken:
                continue
            try:
                data, height, width = read(self.files.path(place), decoded=place in self.odd)
            except UNREADABLE:
                continue
            if self.seed is None:
                view = central_view(height, width, self.size)
            else:
                view = random_view(height, width, self.size, generator(VIEW, self.seed, epoch, index))
            return Sample(data, int(self.files.labels[place]), view, place, index if offset else -1)
        return self._blank(index)

    def set_aside(self, indices: set[int], error: Exception) -> list[int]:
        """The broken ones among files one of which a backend could not decode; where none is, all are odd from now on.

        Args:
            indices: of the files; −1 is padding.

        Raises:
            Exception: `error`, where they are odd already: another thing is wrong.
        """
        broken = [index for index in sorted(indices - {-1}) if self._error(index) is not None]
        self.broken.update(broken)
        if not broken:
            if indices <= self.odd:
                raise error
            self.odd.update(indices)
        return broken

    def is_bad(self, index: int) -> bool:
        """Whether file `index` itself is at fault, now that it could not be read."""
        error = self._error(index)
        return error is not None and (not isinstance(error, OSError) or error.errno in FILES_FAULT)

    def complaint(self, index: int) -> InputError:
        """What to say of the unreadable file `index`."""
        error = self._error(index)
        reason = why(error) if error else "it could not be read at first, now it can: is the disk all right?"
        return InputError(
            f"cannot read the image {printable(self.files.path(index))}: {reason}; mend or remove it, or leave such "
            "files out by data.on_bad_file=skip (`pgt data verify` finds them all)"
        )

    def _error(self, index: int) -> Exception | None:
        try:
            decode(self.files.path(index))
        except UNREADABLE as error:
            return error.with_traceback(None)  # its frames would keep the loader, and its workers, alive
        return None

    def _blank(self, unreadable: int = -1) -> Sample:
        return Sample(_BLANK, IGNORE_INDEX, View((0, 0, 1, 1), (self.size, self.size)), unreadable=unreadable)


class Stream:
    """One rank's samples of all epochs as one row without an end: the source that DALI asks.

    Args:
        start: sample of the row (from 0) that the first request is answered with.
    """

    def __init__(self, reader: Reader, sampler: Sampler, start: int) -> None:
        self.reader, self.sampler, self.start = reader, sampler, start
        self._orders: dict[int, np.ndarray] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a process that reads ahead for DALI."""
        vars(self).update(state)
        leave_with_parent_only()

    def _index(self, epoch: int, place: int) -> int:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = self.sampler.part(epoch).ravel()
        return int(self._orders[epoch][place])

    def __call__(self, info: Any) -> tuple[np.ndarray, ...]:
        """File bytes, box corner and shape, resized size, place of the crop's corner, flip, label, unreadable index.

        Args:
            info: DALI's `SampleInfo`; requests are counted from 0 in `idx_in_epoch`.
        """
        epoch, place = divmod(self.start + info.idx_in_epoch, self.sampler.samples_per_rank)
        sample = self.reader.sample(epoch, self._index(epoch, place))
        view = sample.view
        room = (view.size[0] - self.reader.size, view.size[1] - self.reader.size)
        corner = [c / r if r else 0.0 for c, r in zip(view.corner, room, strict=True)]
        return (
            np.frombuffer(sample.data, np.uint8),
            np.array(view.box[:2], np.int32),
            np.array(view.box[2:], np.int32),
            np.array(view.size, np.float32),
            np.array(corner[0], np.float32),
            np.array(corner[1], np.float32),
            np.array(view.flip, np.int32),
            np.array(sample.label, np.int64),
            np.array(sample.unreadable, np.int64),
        )


def read(path: Path, decoded: bool = False) -> tuple[bytes, int, int]:
    """An image file as bytes that every backend decodes alike, its height and its width.

    Decodes the file only where its header is odd or its end is missing, or where it shall be `decoded`.

    Raises:
        UNREADABLE: it is no image, or a truncated one.
    """
    data = contents(path)
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if max(width, height) > LONGEST * min(width, height):
            raise ValueError(f"{width} x {height} pixels are more than {LONGEST} times as long as wide")
        if decoded or image.format not in DECODED_BY_ALL or _deep(image) or image.mode == "CMYK":
            return bitmap(rgb(image)), height, width
        if not _ends(data, image.format):
            image.load()
    return data, height, width


def contents(path: Path) -> bytes:
    """All of a regular file. What else may lie there, a pipe say, is not waited for.

    Raises:
        OSError, ValueError: it cannot be read, or is no regular file.
    """
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        os.set_blocking(file.fileno(), True)  # else Lustre answers EAGAIN where another machine has just written
        return file.readall()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def decode(path: Path) -> None:
    """Read an image file, and decode all of it.

    Raises:
        UNREADABLE: it cannot be.
    """
    data, _, _ = read(path)
    with Image.open(io.BytesIO(data)) as image:
        image.load()


def rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB. Deep greyscale keeps its upper 8 bits, where Pillow alone would cut it off at 255."""
    if _deep(image):
        pixels = np.asarray(image)
        top = 255 if pixels.max() < 256 else 65535
        return Image.fromarray((pixels.clip(0, top) * (255 / top)).round().astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def why(error: Exception) -> str:
    """A read error without the path, which the caller names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def bitmap(image: Image.Image) -> bytes:
    """An RGB image as an uncompressed file."""
    file = io.BytesIO()
    image.save(file, "BMP")
    return file.getvalue()


def _deep(image: Image.Image) -> bool:
    """More than 8 bits a pixel in one channel."""
    return image.mode.startswith(("I", "F"))


def _ends(data: bytes, format: str) -> bool:
    """Whether the file has its format's end mark where it belongs; False also where the format has none."""
    if format == "JPEG":
        return data.rfind(b"\xff\xd9", -64) >= 0
    return format == "PNG" and b"IEND" in data[-16:]


_BLANK = bitmap(Image.new("RGB", (1, 1)))
