"""The files of the package that are no code: conf/ and the published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent


def conf_dir() -> Path:
    """The folder of the Hydra groups."""
    return folder("conf")


def folder(name: str) -> Path:
    """A folder of the repository: inside the installed package, or beside it in a checkout."""
    inside = PACKAGE / Path(name).name
    return inside if inside.is_dir() else PACKAGE.parent / name


def groups() -> list[str]:
    """The names of the Hydra groups."""
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir())


def is_group(name: str) -> bool:
    """Whether there is a Hydra group of that name."""
    return "." not in name and (conf_dir() / name).is_dir()


def is_choice(group: str, name: str) -> bool:
    """Whether a group has a choice of that name."""
    return (conf_dir() / group / f"{name}.yaml").is_file()


def choices(group: str) -> list[str]:
    """The names of a group's choices, folders included: `demo/bn` of `experiment`. `all` is none: it lists others."""
    top = conf_dir() / group
    return sorted(
        path.relative_to(top).with_suffix("").as_posix() for path in top.rglob("*.yaml") if path.stem != "all"
    )


def read_conf(name: str) -> dict[str, Any]:
    """The values in the file of a choice such as `recipe/paper`, unresolved and without its defaults list."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{name}.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "defaults"}
