"""From a command line to checked configs, before anything is written and before torch is imported."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

from pgt.config.identity import identity, run_id
from pgt.config.resources import choices, conf_dir, read_conf
from pgt.config.rules import validate
from pgt.config.schema import Config
from pgt.core.errors import InputError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


ALWAYS = frozenset({"experiment", "seed", "paths.runs"})
"""Keys that every choice of groups has."""


def compose_all(overrides: Sequence[str], multirun: bool = False) -> list[Config]:
    """Compose and check every job of a command line.

    Args:
        overrides: Hydra's override grammar.
        multirun: expand sweeps (`seed=0,1,2`) to their product; otherwise a sweep is an error.

    Raises:
        InputError: at the first thing that does not fit, whichever job it is in.
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
    """A sweep that names a run twice does not mean it: method.alpha, say, overrides method=baseline, too."""
    seen: dict[str, Sequence[str]] = {}
    for config, job in zip(configs, jobs, strict=True):
        first = seen.setdefault(run_id(identity(config)), job)
        if first is not job:
            raise InputError(
                f"two jobs of this sweep are the same run: '{' '.join(first)}' and '{' '.join(job)}'; an override "
                "holds for every choice (for a baseline beside several α: method=pgt method.alpha=1,0.25)"
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

    A folder's file `all.yaml`, where it has one, lists them; it may name experiments of other folders.

    Raises:
        InputError: no such folder.
    """
    folder, _, last = name.rpartition("/")
    if last != "all":
        return [name]
    if (conf_dir() / "experiment" / folder / "all.yaml").is_file():
        listed: list[str] = read_conf(f"experiment/{name}")["experiments"]
        return listed
    known = choices("experiment")
    found = [other for other in known if other.startswith(f"{folder}/")]
    if not found:
        folders = dict.fromkeys(f"{other.rpartition('/')[0]}/all" for other in known)
        raise InputError(f"unknown experiment '{name}': choose one of {', '.join(folders)}")
    return found


def _own_sweep(names: Sequence[str], overrides: Sequence[str], multirun: bool) -> list[str]:
    """The sweeps that the files of experiments ask for, where the command line does not set these keys."""
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
    """What an experiment's file goes through; nothing where there is no such file, which is another's complaint."""
    if not (conf_dir() / "experiment" / f"{experiment}.yaml").is_file():
        return {}
    sweep: dict[str, list[Any]] = read_conf(f"experiment/{experiment}").get("sweep", {})
    return sweep


def expand(overrides: Sequence[str], multirun: bool) -> list[list[str]]:
    """The override lists of the jobs of a command line, in Hydra's order.

    Raises:
        InputError: an override that does not parse, or a sweep without `multirun`.
    """
    choices: dict[str, list[str]] = {}
    for text in overrides:
        parsed = _parse(text)
        key = parsed.get_key_element()
        if not parsed.is_sweep_override():
            choices[key] = [text]
        elif not multirun and not parsed.is_hydra_override():
            raise InputError(f"'{text}' is a sweep: add -m to run all of it")
        elif not parsed.is_discrete_sweep():
            raise InputError(f"'{text}' is no finite sweep: name the values, as in {key}=0.1,0.2")
        else:
            choices[key] = [f"{key}={value}" for value in parsed.sweep_string_iterator()]
    return [list(job) for job in itertools.product(*choices.values())]


def _parse(text: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException:
        raise InputError(f"cannot read the override '{text}': write key=value, in Hydra's grammar") from None
    if not parsed.key_or_group:
        raise InputError(f"cannot read the override '{text}': write key=value")
    return parsed


@contextmanager
def _hydra() -> Iterator[None]:
    from hydra import initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        yield


def _compose(overrides: Sequence[str]) -> Config:
    from hydra.core.hydra_config import HydraConfig

    _check_keys(overrides)
    composed = deepcopy(_composed(tuple(text for text in overrides if text.partition("=")[0] != "seed")))
    for text in overrides:
        if text.partition("=")[0] == "seed":
            composed.seed = _parse(text).value()
    HydraConfig.instance().set_config(composed)
    return validate(composed)


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """What Hydra makes of overrides without a seed: a sweep over seeds composes once, which takes most of its time."""
    import hydra
    from hydra.errors import HydraException

    try:
        return hydra.compose("train", list(overrides), return_hydra_config=True)
    except HydraException as error:
        raise InputError(_one_line(error)) from None


def check_shown(overrides: Sequence[str]) -> None:
    """Refuse what `--cfg` cannot show; keys may still be missing.

    Raises:
        InputError: an unknown key or choice.
    """
    with _hydra():
        for job in expand(overrides, multirun=True):
            _check_keys(job)


def _check_keys(overrides: Sequence[str]) -> None:
    """Refuse a choice that is no file, and a key that the chosen groups do not have; name the nearest there is."""
    groups = tuple(text for text in overrides if _is_group(_key(text)))
    if wrong := _group_error(groups):
        raise InputError(wrong)
    keys = [_key(text) for text in overrides if text not in groups]
    unknown = [key for key in keys if not key.startswith("hydra") and key not in ALWAYS]
    if not unknown:
        return
    known = _known(groups)
    for key in unknown:
        if key not in known:
            raise InputError(f"unknown key '{key}'{_hint(key, known)}")


@cache
def _known(groups: tuple[str, ...]) -> frozenset[str]:
    """Every key that the chosen groups have."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    try:
        return frozenset(_paths(OmegaConf.to_container(hydra.compose("train", list(groups)))))
    except (HydraException, ValueError) as error:
        raise InputError(_one_line(error)) from None


def _hint(key: str, known: Set[str]) -> str:
    group, _, rest = key.partition(".")
    owners = [name for name in choices(group) if rest in read_conf(f"{group}/{name}")]
    if owners:
        return f": it goes with {group}={' or '.join(owners)}"
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    alike = [name for name in known | groups if ("." in name) == ("." in key)]
    nearest = difflib.get_close_matches(key, sorted(alike), n=1)
    return f": did you mean '{nearest[0]}'?" if nearest else "; see `pgt train --cfg job` for the keys"


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~").split("@")[0]


def _is_group(key: str) -> bool:
    return ("." not in key and (conf_dir() / key).is_dir()) or key.startswith("hydra/")


def _group_error(groups: Sequence[str]) -> str | None:
    """What is wrong with the first group choice that names no file."""
    for text in groups:
        folder = conf_dir() / _key(text)
        if not folder.is_dir():
            continue
        for value in text.partition("=")[2].strip("[]").split(","):  # some groups take several: [wandb,tensorboard]
            name = value.strip()
            if name in ("", "null") or (folder / f"{name}.yaml").is_file():
                continue
            options = choices(_key(text))
            nearest = difflib.get_close_matches(name, options, n=1)
            folders = dict.fromkeys(option.rpartition("/")[0] or option for option in options)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"choose one of {', '.join(folders)}"
            return f"unknown {_key(text)} '{name}': {hint}"
    return None


def _paths(node: Any, prefix: str = "") -> set[str]:
    """Every key of a nested container, dotted: inner nodes and leaves."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found: set[str] = set()
    for key, value in items:
        path = f"{prefix}{key}"
        found |= {path} | _paths(value, f"{path}.")
    return found


def _one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
