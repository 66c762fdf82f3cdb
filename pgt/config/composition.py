"""Hydra's composition of the overrides of a job, done once for the jobs that choose the same files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pgt.config.choices import refuse_other_kinds
from pgt.config.grammar import key_of, parse, written
from pgt.config.hints import paths, unknown, unknown_choice
from pgt.config.resources import Sources, is_group, not_yaml, search_path, sources
from pgt.core.errors import InputError, one_line

PLUGINS = {
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/submitit_local": "hydra-submitit-launcher",
    "hydra/launcher/submitit_slurm": "hydra-submitit-launcher",
    "hydra/launcher/ray": "hydra-ray-launcher",
    "hydra/sweeper/optuna": "hydra-optuna-sweeper",
    "hydra/sweeper/ax": "hydra-ax-sweeper",
    "hydra/sweeper/nevergrad": "hydra-nevergrad-sweeper",
}
"""The packages that have Hydra's launchers and sweepers."""


@contextmanager
def in_hydra() -> Iterator[None]:
    """A context in which Hydra can compose. A Hydra that is already at work is set aside, and put back afterwards."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(search_path()[0])):
            yield
    finally:
        GlobalHydra.instance().hydra = before  # another instance: Hydra has put back a copy


def chooses(override: str) -> bool:
    """Whether an override chooses a file of a group."""
    key = key_of(override)
    return is_group(key) or key.startswith("hydra/")


def compose(overrides: Sequence[str]) -> DictConfig:
    """The config of a job, which the caller may change.

    Hydra takes about 0.1 s for a composition, and for most jobs of a sweep only values differ. So Hydra composes the
    chosen files once (`composed`), and the values are set here in the way in which Hydra sets them.

    Raises:
        InputError: Hydra's complaint, in one line.
    """
    values = [text for text in overrides if not chooses(text) and not parse(text).is_hydra_override()]
    files = [text for text in overrides if text not in values]
    merged = [text for text in files if isinstance(parse(text).value(), dict)]  # recipe={epochs: 3} sets values, too
    if merged or not all(map(_sets, values)):
        return deepcopy(composed(overrides))  # the order counts
    config = deepcopy(composed(files))
    try:
        for text in values:
            OmegaConf.update(config, key_of(text), parse(text).value(), merge=True)
    except (OmegaConfBaseException, ValueError):
        return deepcopy(composed(overrides))  # Hydra says what is wrong
    task = [text for text in overrides if not parse(text).is_hydra_override()]
    style = config.hydra.job.config.override_dirname
    named = sorted(text for text in task if key_of(text) not in style.exclude_keys)
    config.hydra.overrides.task = task
    config.hydra.job.override_dirname = style.item_sep.join(named).replace("=", style.kv_sep)
    return config


def _sets(override: str) -> bool:
    """Whether an override gives one value to a key that is there, and neither adds nor deletes one."""
    parsed = parse(override)
    return parsed.type == OverrideType.CHANGE and not parsed.package and not parsed.is_sweep_override()


def composed(overrides: Sequence[str]) -> DictConfig:
    """Hydra's composition of overrides, kept until `forget` and shared: it must not be changed.

    Raises:
        InputError: Hydra's complaint, in one line.
    """
    return _composed(tuple(overrides), sources())


@cache
def _composed(overrides: tuple[str, ...], where: Sources) -> DictConfig:
    try:
        return hydra.compose(where.primary, [*other_folders(), *overrides], return_hydra_config=True)
    except YAMLError as error:
        raise not_yaml(error) from None
    except MissingConfigException as error:
        missing = str(error.missing_cfg_file)
        group, _, name = missing.rpartition("/")
        if package := PLUGINS.get(missing):
            raise InputError(f"{group}={name} is in a package of its own: pip install {package}") from None
        if group.startswith("hydra/") and error.options:
            raise InputError(unknown_choice(group, name, error.options)) from None
        raise InputError(one_line(error)) from None
    except RecursionError:
        raise InputError("some of the chosen files name each other in their defaults lists") from None
    except (HydraException, ValueError) as error:
        if refused := re.match(r"Could not override '(hydra\.[^']+)'", str(error)):
            chosen = composed([*filter(chooses, overrides)])
            known = frozenset(paths(OmegaConf.to_container(chosen.hydra), "hydra."))
            raise InputError(unknown([refused[1]], known)) from None
        if merged := re.match(r"In '([^']+)': ConfigTypeError raised.*Cannot merge", str(error), re.S):
            refuse_other_kinds(merged[1], OmegaConf.to_container(composed(())))
        raise InputError(one_line(error)) from None


def other_folders() -> list[str]:
    """The override by which Hydra finds more folders than that of the primary config."""
    return searching_in(search_path()[1])


def searching_in(folders: Sequence[Path]) -> list[str]:
    """The override by which Hydra finds the files of more folders than that of the primary config."""
    return [f"hydra.searchpath={written([f'file://{folder}' for folder in folders])}"] if folders else []


def forget() -> None:
    """Clear what `composed` has kept, since in a notebook files may have been edited."""
    _composed.cache_clear()
