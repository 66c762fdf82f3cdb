"""JPEGs for checks and benchmarks on machines without a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

WIDTH, HEIGHT = 500, 375
CLASSES = 2


def generate(folder: Path, count: int) -> None:
    """Write `<class>/<number>.jpg`: images of ImageNet's usual size in pixels and in bytes, the same ones each time."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"class{index % CLASSES}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        blobs = small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        grain = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        Image.blend(blobs, grain.filter(ImageFilter.GaussianBlur(0.6)), 0.4).save(path, quality=92)
