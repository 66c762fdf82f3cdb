"""Where the files lie that come with the package and are no code. No torch."""

from __future__ import annotations

from pathlib import Path

SIZES = {
    "imagenet": (1_281_167, 50_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "digits": (898, 899),
}
"""Training and test samples of the data sets that have a fixed number."""

PACKAGE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The folder of the Hydra groups."""
    return _folder("conf")


def published_dir() -> Path:
    """The folder of the paper's numbers, as CSV."""
    return _folder("results/published")


def _folder(name: str) -> Path:
    """Inside the installed package, or beside it in a checkout."""
    inside = PACKAGE / Path(name).name
    return inside if inside.is_dir() else PACKAGE.parent / name
