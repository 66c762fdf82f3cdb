"""Where the files lie that come with the package and are no code. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = {
    "imagenet": (1_281_167, 50_000),
    "tiny_imagenet": (100_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "digits": (898, 899),
}
"""Training and test samples of the data sets that have a fixed number."""

PACKAGE = Path(__file__).resolve().parent.parent


def conf_dir() -> Path:
    """The folder of the Hydra groups."""
    return _folder("conf")


def choices(group: str) -> list[str]:
    """The names of a group's choices, folders included: `demo/bn` of `experiment`. `all.yaml` lists others."""
    top = conf_dir() / group
    return sorted(
        path.relative_to(top).with_suffix("").as_posix() for path in top.rglob("*.yaml") if path.stem != "all"
    )


def read_conf(name: str) -> dict[str, Any]:
    """The values in a group's file, as `recipe/paper`, unresolved; its defaults list apart."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{name}.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "defaults"}


def published_dir() -> Path:
    """The folder of the paper's numbers, as CSV."""
    return _folder("results/published")


def _folder(name: str) -> Path:
    """Inside the installed package, or beside it in a checkout."""
    inside = PACKAGE / Path(name).name
    return inside if inside.is_dir() else PACKAGE.parent / name
