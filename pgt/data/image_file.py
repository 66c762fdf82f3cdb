"""Reading and checking one image file, without torch.

Files that the backends would decode differently are decoded here.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

DECODED_BY_ALL = {"JPEG", "PNG"}
UNREADABLE = Exception
"""What to catch when a file is read: Pillow raises exceptions of many kinds for a damaged file."""
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
"""Error numbers that blame one file, not the disk or the machine; Pillow's errors have no number."""
LONGEST = 100
"""The largest ratio of the long side to the short one: resizing a longer image would take all memory."""


def read(path: Path, decoded: bool = False) -> tuple[bytes, int, int]:
    """Read an image file as bytes that every backend decodes alike; returns them, the height and the width.

    Decodes the file only if it must: its header is unusual, its end is missing, or `decoded` asks for it.

    Raises:
        UNREADABLE: the file is not an image, or a truncated one.
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
    """Read all of a regular file. Anything else, such as a pipe, is refused without waiting for it.

    Raises:
        OSError, ValueError: the file cannot be read, or is not a regular file.
    """
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        os.set_blocking(file.fileno(), True)  # without it, Lustre answers EAGAIN if another machine has just written
        return file.readall()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def decode(path: Path) -> None:
    """Read an image file, and decode all of it.

    Raises:
        UNREADABLE: it cannot be read or decoded.
    """
    data, _, _ = read(path)
    with Image.open(io.BytesIO(data)) as image:
        image.load()


def rgb(image: Image.Image) -> Image.Image:
    """Convert any image to 8-bit RGB. Deep greyscale keeps its upper 8 bits; Pillow alone would clip it at 255."""
    if _deep(image):
        pixels = np.asarray(image)
        top = 255 if pixels.max() < 256 else 65535
        return Image.fromarray((pixels.clip(0, top) * (255 / top)).round().astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def why(error: Exception) -> str:
    """Describe a read error without the path, which the caller names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def files_fault(error: Exception) -> bool:
    """Return whether the file is to blame for a read error, and not the disk or the machine."""
    return getattr(error, "errno", None) in _FILES_FAULT and not isinstance(error, MemoryError)


def bitmap(image: Image.Image) -> bytes:
    """Encode an RGB image as an uncompressed file."""
    file = io.BytesIO()
    image.save(file, "BMP")
    return file.getvalue()


def _deep(image: Image.Image) -> bool:
    """Return whether an image has one channel of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def _ends(data: bytes, format: str) -> bool:
    """Return whether a JPEG or PNG file has its end mark at its end; False for other formats."""
    if format == "JPEG":
        return data.rfind(b"\xff\xd9", -64) >= 0
    return format == "PNG" and b"IEND" in data[-16:]
