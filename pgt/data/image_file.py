"""Reading and checking one image file, without torch.

Files that the backends would decode differently are decoded here.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pgt.core.errors import one_line

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
BITS_PER_SAMPLE = 258
"""The number of a TIFF tag."""
PNG_DEPTH = 24
"""The place in a PNG of the byte that says how many bits a channel has."""
LONGEST = 100
"""The largest ratio of the long side to the short one: resizing a longer image would take all memory."""


def read(path: Path, decoded: bool = False) -> tuple[bytes, int, int]:
    """Read an image file as bytes that every backend decodes alike; returns them, the height and the width.

    Decodes the file only if it must: its header is unusual, its end is missing, or `decoded` asks for it.

    Raises:
        UNREADABLE: the file is not an image, a truncated one, or one without a defined brightness.
    """
    data = contents(path)
    with opened(data) as image:
        width, height = image.size
        if max(width, height) > LONGEST * min(width, height):
            raise ValueError(f"{width} x {height} pixels are more than {LONGEST} times as long as wide")
        # Colours of 16 bits are decoded here, too: Pillow cuts them to 8 bits, and DALI rounds.
        deep = _deep(image) or (image.format == "PNG" and (data[12:16] != b"IHDR" or data[PNG_DEPTH] == 16))
        if decoded or image.format not in DECODED_BY_ALL or deep or image.mode == "CMYK":
            return bitmap(rgb(image)), height, width
        if not _ends(data, image.format):
            image.load()
    return data, height, width


def contents(path: Path) -> bytes:
    """Read all of a regular file. Anything else, such as a pipe, is refused without waiting for it.

    Raises:
        OSError, ValueError: the file cannot be read, or is not a regular file.
    """
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        # With O_NONBLOCK left on, Lustre answers EAGAIN if another machine has just written.
        os.set_blocking(file.fileno(), True)
        return file.readall()


def decode(path: Path) -> int:
    """Read an image file, and decode all of it; returns its number of pixels.

    Raises:
        UNREADABLE: it cannot be read or decoded.
    """
    data, height, width = read(path)
    with opened(data) as image:
        image.load()
    return height * width


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """A context with the image of a file's bytes, in which Pillow's warnings are not shown.

    They name no file and come again at each reading. Those about EXIF data and transparency do not matter, because
    neither is used. Those about very large images do: `pgt data verify` names these files.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            yield image


def rgb(image: Image.Image) -> Image.Image:
    """Convert any image to 8-bit RGB. Deep greyscale is scaled to 8 bits; Pillow alone would clip it at 255.

    Raises:
        ValueError: the format does not say which grey value is white.
    """
    if not _deep(image):
        return image.convert("RGB")
    white = _white(image)
    return Image.fromarray((np.asarray(image).clip(0, white) * (255 / white)).round().astype(np.uint8)).convert("RGB")


def _white(image: Image.Image) -> int:
    """Return the value of white in a deep greyscale image; a guess from its pixels would differ from file to file."""
    if image.mode.startswith("I;16"):
        bits = int(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0])  # a TIFF may have 12
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        bits = 16  # Pillow scales a PGM of any range to it
    else:
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise ValueError(f"{kind} grey values do not say what is white: save it with 8 or 16 bits, unsigned")
    return (1 << bits) - 1


def why(error: Exception) -> str:
    """Describe a read error without the path, which the caller names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return one_line(error) or type(error).__name__


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
