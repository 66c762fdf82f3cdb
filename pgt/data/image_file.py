"""One image file: read, checked, decoded where not every backend would decode it alike. No torch."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image

DECODED_BY_ALL = {"JPEG", "PNG"}
UNREADABLE = Exception
"""What Pillow and the file system answer with where a file cannot be read: Pillow, with whatever it stumbles over."""
_FILES_FAULT = {
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
LONGEST = 100
"""Times that an image may be as long as wide: resizing a longer one would take all memory."""


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


def files_fault(error: Exception) -> bool:
    """Whether a read error speaks of the file, not of a disk or a machine that is in trouble."""
    return getattr(error, "errno", None) in _FILES_FAULT and not isinstance(error, MemoryError)


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
