"""From a command line to checked configs, before anything is written and before torch is imported."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from pgt.config.hints import paths, unknown, unknown_choice
from pgt.config.identity import identity, run_id, with_files
from pgt.config.resources import choices, conf_dir, is_choice, is_group, read_conf
from pgt.config.rules import validate
from pgt.config.schema import Config
from pgt.core.errors import InputError
from pgt.core.registry import DATA_SETS

ALWAYS = frozenset({"experiment", "seed", "paths.runs"})
"""Keys that every config has, whatever groups it is made of."""


def compose_all(overrides: Sequence[str], multirun: bool = False) -> list[Config]:
    """Compose and check every job of a command line.

    Args:
        overrides: Hydra's override grammar.
        multirun: expand sweeps (`seed=0,1,2`) to their product; without it, a sweep is an error.

    Raises:
        InputError: everything that is wrong with the first job that cannot be run.
    """
    jobs = expand(spell_out(overrides, multirun), multirun)
    configs = []
    with _hydra():
        for job in jobs:
            try:
                configs.append(_compose(job))
            except InputError as error:
                where = f" (in the job {' '.join(job)})" if len(jobs) > 1 else ""
                raise InputError(f"{error}{where}") from None
    _refuse_doubles(configs, jobs)
    return configs


def _refuse_doubles(configs: Sequence[Config], jobs: Sequence[Sequence[str]]) -> None:
    """Refuse a sweep that names a run twice, as when method.alpha overrides the α of method=baseline, too."""
    seen: dict[str, Sequence[str]] = {}
    for config, job in zip(configs, jobs, strict=True):
        folder = getattr(config.data, "root", None) if DATA_SETS[config.data.name].any_files else None
        first = seen.setdefault(run_id(with_files(identity(config), folder)), job)
        if first is not job:
            raise InputError(
                f"two jobs of this sweep are the same run: '{' '.join(first)}' and '{' '.join(job)}'; an override "
                "applies to every job; for a baseline beside PGT: method=pgt method.alpha=1,0.25"
            )


def spell_out(overrides: Sequence[str], multirun: bool) -> list[str]:
    """Overrides in Hydra's own terms: `experiment=FOLDER/all` named one by one, and an experiment's own sweep added.

    An experiment's file may have a mapping `sweep` of keys and values that `-m` goes through; an override of such a
    key takes its place.

    Raises:
        InputError: a folder without experiments, a sweep without `multirun`, or sweeps that do not go together.
    """
    spelled = []
    for text in overrides:
        parsed = _parse(text)
        if parsed.get_key_element() != "experiment" or parsed.is_delete():
            spelled.append(text)
            continue
        sweep = parsed.is_sweep_override() and parsed.is_discrete_sweep()
        values = list(parsed.sweep_string_iterator()) if sweep else [parsed.get_value_element_as_str()]
        names = list(dict.fromkeys(name for value in values for name in experiments(value)))
        if len(names) > 1 and not multirun:
            raise InputError(f"'{text}' names {len(names)} runs: add -m to run all of them")
        spelled += [f"experiment={','.join(names)}", *_own_sweep(names, overrides, multirun)]
    return spelled


def experiments(name: str) -> list[str]:
    """The experiments that a name stands for: itself, or with `/all` those of a folder.

    If a folder has a file `all.yaml`, this lists them; it may name experiments of other folders.

    Raises:
        InputError: no such folder.
    """
    folder, _, last = name.rpartition("/")
    if last != "all":
        return [name]
    if is_choice("experiment", name):
        listed: list[str] = read_conf(f"experiment/{name}")["experiments"]
        return listed
    known = choices("experiment")
    found = [other for other in known if other.startswith(f"{folder}/")]
    if not found:
        folders = dict.fromkeys(f"{other.rpartition('/')[0]}/all" for other in known)
        raise InputError(f"unknown experiment '{name}': choose one of {', '.join(folders)}")
    return found


def _own_sweep(names: Sequence[str], overrides: Sequence[str], multirun: bool) -> list[str]:
    """The sweeps in the files of experiments, as overrides of the keys that the command line does not set."""
    given = {_key(text) for text in overrides}
    sweeps = [{key: values for key, values in _sweep(name).items() if key not in given} for name in names]
    if not any(sweeps):
        return []
    if any(sweep != sweeps[0] for sweep in sweeps):
        raise InputError("these experiments go through different values: give each a command of its own")
    if not multirun:
        raise InputError(f"'{names[0]}' is a sweep over {', '.join(sweeps[0])}: add -m, or set one value")
    return [f"{key}={','.join(map(str, values))}" for key, values in sweeps[0].items()]


@cache
def _sweep(experiment: str) -> dict[str, list[Any]]:
    """The mapping `sweep` of an experiment's file; empty if there is no such file, which is reported elsewhere."""
    known = is_choice("experiment", experiment)
    sweep: dict[str, list[Any]] = read_conf(f"experiment/{experiment}").get("sweep", {}) if known else {}
    return sweep


def expand(overrides: Sequence[str], multirun: bool) -> list[list[str]]:
    """The override lists of the jobs of a command line, in Hydra's order.

    Raises:
        InputError: an override that does not parse, or a sweep without `multirun`.
    """
    values: dict[str, list[str]] = {}
    for text in overrides:
        parsed = _parse(text)
        key = parsed.get_key_element()
        if not parsed.is_sweep_override():
            values[key] = [text]
        elif not multirun and not parsed.is_hydra_override():
            raise InputError(f"'{text}' is a sweep: add -m to run all of it")
        elif not parsed.is_discrete_sweep():
            raise InputError(f"'{text}' is no finite sweep: name the values, as in {key}=0.1,0.2")
        else:
            values[key] = [f"{key}={value}" for value in parsed.sweep_string_iterator()]
    return [list(job) for job in itertools.product(*values.values())]


def check_shown(overrides: Sequence[str]) -> None:
    """Refuse what `--cfg` cannot show; keys may still be missing.

    Raises:
        InputError: an unknown key or choice.
    """
    with _hydra():
        for job in expand(overrides, multirun=True):
            if wrong := _unknown_keys(job):
                raise InputError(unknown(wrong, _known(job)))


def _parse(text: str) -> Override:
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException:
        raise InputError(f"cannot read the override '{text}': write key=value, in Hydra's grammar") from None
    if not parsed.key_or_group:
        raise InputError(f"cannot read the override '{text}': write key=value")
    return parsed


@contextmanager
def _hydra() -> Iterator[None]:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        yield


def _compose(overrides: Sequence[str]) -> Config:
    wrong = _unknown_keys(overrides)
    rest = [text for text in overrides if _key(text) not in wrong]
    composed = deepcopy(_composed(tuple(text for text in rest if text.partition("=")[0] != "seed")))
    for text in rest:
        if text.partition("=")[0] == "seed":
            composed.seed = _parse(text).value()
    HydraConfig.instance().set_config(composed)
    return validate(composed, [unknown(wrong, _known(overrides))] if wrong else [])


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """Hydra's composition of overrides without a seed: a sweep over seeds composes once, which takes most of the time.

    Raises:
        InputError: Hydra's complaint, in one line.
    """
    try:
        return hydra.compose("train", list(overrides), return_hydra_config=True)
    except (HydraException, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from None


def _unknown_keys(overrides: Sequence[str]) -> list[str]:
    """The keys of overrides that the chosen groups do not have.

    Raises:
        InputError: choices that are no files of a group.
    """
    _check_choices(overrides)
    keys = dict.fromkeys(_key(text) for text in overrides if not _is_group(_key(text)))
    asked = [key for key in keys if not key.startswith("hydra") and key not in ALWAYS]
    return [key for key in asked if key not in _known(overrides)] if asked else []


def _known(overrides: Sequence[str]) -> frozenset[str]:
    """Every key that the chosen groups have."""
    return _keys(tuple(_choices(overrides)))


@cache
def _keys(chosen: tuple[str, ...]) -> frozenset[str]:
    found = paths(OmegaConf.to_container(_composed(chosen)))
    return frozenset(key for key in found if key.partition(".")[0] != "hydra")  # its own keys are never meant by a typo


def _choices(overrides: Sequence[str]) -> list[str]:
    """The overrides that choose of a group."""
    return [text for text in overrides if _is_group(_key(text))]


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~").split("@")[0]


def _is_group(key: str) -> bool:
    return is_group(key) or key.startswith("hydra/")


def _check_choices(overrides: Sequence[str]) -> None:
    """Raises InputError if overrides choose what is no file of a group."""
    wrong = []
    for text in overrides:
        group, values = _key(text), text.partition("=")[2].strip("[]")  # some take several: [wandb,tensorboard]
        for name in (value.strip() for value in values.split(",")):
            if is_group(group) and name not in ("", "null") and not is_choice(group, name):
                wrong.append(unknown_choice(group, name))
    if wrong:
        raise InputError("; ".join(wrong))
