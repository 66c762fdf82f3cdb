"""The choices of groups: names that stand for several experiments, sweeps in their files, and faults in any file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pgt.config.grammar import key_of, parse, written
from pgt.config.hints import HYDRA_GROUPS, REFUSED, paths, unknown_choice
from pgt.config.resources import (
    Sources,
    choices,
    conf_dir,
    conf_file,
    groups,
    is_choice,
    is_global,
    is_group,
    read_conf,
    read_file,
    sources,
)
from pgt.config.schema import Method, Part, Recipe, Trainer
from pgt.core.errors import InputError

SEVERAL = frozenset({"logger"})
"""Groups that take a list of choices."""
BASES: dict[str, tuple[str, type[Part]]] = {
    "method": ("baseline", Method),
    "recipe": ("paper", Recipe),
    "trainer": ("default", Trainer),
}
"""The choice that a file of one's own builds on, by group, and the keys that every choice has."""


class SeveralRuns(InputError):
    """A command line without -m stands for several runs.

    Args:
        what: the words that stand for them.
        one: how to name one run.
    """

    def __init__(self, what: str, one: str) -> None:
        super().__init__(f"{what}: add -m to run all of it, or {one}")
        self.what, self.one = what, one


def experiments(name: str, above: tuple[str, ...] = ()) -> list[str]:
    """The experiments that a name stands for: itself, or with `/all` those of a folder.

    If a folder has a file `all.yaml`, this lists them; it may name experiments of other folders.

    Args:
        above: names whose files have led to this one: left out.

    Raises:
        InputError: no such folder.
    """
    folder, _, last = name.rpartition("/")
    if last != "all":
        return [name]
    if is_choice("experiment", name):
        listed = read_conf(f"experiment/{name}").get("experiments")
        if not isinstance(listed, list):
            raise InputError(f"{conf_file(f'experiment/{name}')} must have a list `experiments` of names")
        above = (*above, name)
        return [found for other in map(str, listed) if other not in above for found in experiments(other, above)]
    known = choices("experiment")
    found = [other for other in known if other.startswith(f"{folder}/")]
    if not found:
        folders = dict.fromkeys(f"{other.rpartition('/')[0]}/all" for other in known)
        raise InputError(f"unknown experiment '{name}': choose one of {', '.join(folders)}")
    return found


def own_sweep(names: Sequence[str], overrides: Sequence[str], multirun: bool) -> list[str]:
    """The sweeps in the files of experiments, as overrides of the keys that the command line does not set.

    An experiment's file may have a mapping `sweep` of keys and values that `-m` goes through; an override of such a
    key takes its place.

    Raises:
        InputError: the sweeps differ, or `sweep` is no mapping of keys to lists.
        SeveralRuns: there is a sweep without `multirun`.
    """
    given = {key_of(text) for text in overrides}
    sweeps = [{key: values for key, values in _sweep(name).items() if key not in given} for name in names]
    if not any(sweeps):
        return []
    if any(sweep != sweeps[0] for sweep in sweeps):
        raise InputError("these experiments go through different values: give each a command of its own")
    if not multirun:
        one = " ".join(f"{key}={written(values[0])}" for key, values in sweeps[0].items())
        raise SeveralRuns(f"'{names[0]}' is a sweep over {', '.join(sweeps[0])}", f"set one value ({one})")
    return [f"{key}={','.join(map(written, values))}" for key, values in sweeps[0].items()]


def _sweep(experiment: str) -> dict[str, list[Any]]:
    """The mapping `sweep` of an experiment's file, over those of the experiments that it builds on.

    A key that the file sets, or a group of which it chooses, is no longer swept. The mapping is empty if there is no
    such file, which is reported elsewhere.
    """
    name = f"experiment/{experiment}"
    if not is_choice("experiment", experiment):
        return {}
    check_file("experiment", experiment)
    inherited: dict[str, list[Any]] = {}
    contents = read_file(conf_file(name))
    sweep, defaults = contents.pop("sweep", {}), contents.get("defaults", [])
    for group, base in _built_on(defaults, name):
        if group == "experiment":
            inherited |= _sweep(base)
    own = {*paths(contents), *(group for group, _ in _chosen_in(defaults))}
    inherited = {key: values for key, values in inherited.items() if key not in own}
    if not (isinstance(sweep, dict) and all(isinstance(values, list) and values for values in sweep.values())):
        example = "sweep: {method.alpha: [0.25, 0.5]}"
        raise InputError(f"{conf_file(name)}: sweep must map keys to lists of values, as in `{example}`; got {sweep}")
    return inherited | {str(key): values for key, values in sweep.items()}


def _built_on(defaults: list[Any], own: str) -> Iterator[tuple[str, str]]:
    """Group and name of each file that the file `own`, such as `experiment/demo/bn`, adds its keys to."""
    for entry in defaults:
        if isinstance(entry, str) and entry != "_self_" and not {*"@$"} & {*entry}:
            group, _, base = _absolute(entry, own).partition("/")
            yield group, base


def _absolute(entry: str, own: str) -> str:
    """The name of a file in the defaults list of the file `own`: `/method/pgt`, or `pgt` beside it, is `method/pgt`."""
    return entry.removeprefix("/") if entry.startswith("/") else f"{own.rpartition('/')[0]}/{entry}"


@cache
def check_file(group: str, name: str, above: tuple[str, ...] = ()) -> None:
    """Refuse a file that Hydra cannot compose, or would compose into something else than it seems to say.

    The files that it builds on and the choices that it makes are checked as well.

    Args:
        above: the files that have led to this one.

    Raises:
        InputError: it is no YAML or no mapping, builds on itself, or an experiment puts its keys in the wrong place.
    """
    own = f"{group}/{name}"
    file = conf_file(own)
    if file.is_relative_to(conf_dir()):
        return
    if own in above:
        raise InputError(f"{file} builds on itself: {' -> '.join([*above, own])}")
    contents = read_file(file)
    defaults = contents.get("defaults", [])
    if group == "experiment" and not contents:
        raise InputError(f"{file} is empty: an experiment states what differs from the defaults")
    if group == "experiment" and not is_global(file):
        raise InputError(f"{file}: add the line `# @package _global_` at its top, so that its keys are those of a run")
    _check_keys(file, contents)
    for fault in _faults(defaults, own):
        raise InputError(f"{file}: defaults: {fault}")
    for other, base in [*_built_on(defaults, own), *_chosen_in(defaults)]:
        if is_group(other) and is_choice(other, base):
            check_file(other, base, (*above, own))


def check_primary() -> None:
    """Refuse a primary config of the user's own that says something else than it seems to.

    Raises:
        InputError: it is no YAML or no mapping, has dotted keys, or values to go through.
    """
    name = sources().primary
    if name == Sources.primary:
        return
    file, contents = conf_file(name), read_conf(name)
    _check_keys(file, contents)
    if "sweep" in contents:
        raise InputError(f"{file}: {REFUSED['hydra.sweeper.params']}")


def _check_keys(file: Path, contents: Mapping[str, Any]) -> None:
    """Refuse dotted keys, and choices of Hydra's groups that stand in the wrong place."""
    for key in contents:
        if re.fullmatch(r"\w+(\.\w+)+", key):  # Hydra reads it as nested keys on a command line only
            *outer, last, inner = key.split(".")
            nested = "".join(f"{name}: {{" for name in outer) + f"{last}: {{{inner}: ...}}" + "}" * len(outer)
            raise InputError(f"{file}: '{key}' is no key in a file: write `{nested}`")
    own = contents.get("hydra") or {}
    if not isinstance(own, dict):
        raise InputError(f"{file}: hydra must be a mapping, as in `hydra: {{launcher: {{nodes: 2}}}}`; it is {own}")
    for part in HYDRA_GROUPS:
        if isinstance(chosen := own.get(part.rpartition("/")[2]), str):
            raise InputError(f"{file}: choose a file of {part} in the defaults list: `- override /{part}: {chosen}`")


def refuse_bare(composed: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse the file of a group that lacks keys, and does not begin with the choice that has them.

    Args:
        overrides: the command line. Keys that it deletes are reported elsewhere.

    Raises:
        InputError: the file, its missing keys, and the line to add.
    """
    deleted = {key_of(text) for text in overrides if parse(text).is_delete()}
    for group, (base, schema) in BASES.items():
        name, part = str(composed.hydra.runtime.choices.get(group)), composed.get(group)
        if not isinstance(part, DictConfig):
            continue
        missing = [
            key
            for key, field in schema.model_fields.items()
            if field.is_required() and key not in {*part} and f"{group}.{key}" not in deleted
        ]
        if missing and is_choice(group, name):
            file = conf_file(f"{group}/{name}")
            if "defaults" not in read_file(file):
                raise InputError(f"{file} lacks {', '.join(missing)}: add the line `defaults: [{base}]` at its top")


def refuse_other_kinds(name: str, usual: Any) -> None:
    """Refuse a file, such as `method/mine`, that has a mapping in the place of a list, or a list for a mapping.

    Args:
        usual: a config with the kinds that are wanted.

    Raises:
        InputError: the file, the key and its kind.
    """
    file, group = conf_file(name), name.partition("/")[0]

    def compare(given: Any, wanted: Any, key: str) -> None:
        for kind, words in ((list, "a list, `- ...` in each line"), (dict, "a mapping, `key: value` in each line")):
            if isinstance(wanted, kind) and isinstance(given, list | dict) and not isinstance(given, kind):
                raise InputError(f"{file}: {key} must be {words}; it is {given}")
        if isinstance(given, dict) and isinstance(wanted, dict):
            for inner in given.keys() & wanted.keys():
                compare(given[inner], wanted[inner], f"{key}.{inner}".lstrip("."))

    top = "" if is_global(file) else group
    compare(read_conf(name), usual.get(group) if top else usual, top)


def _faults(defaults: Any, own: str) -> Iterator[str]:
    """The faults of the defaults list of the file `own`, such as `experiment/demo/bn`, each with its mend."""
    if not isinstance(defaults, list):
        yield f"must be a list, in each line a choice such as `- override /model: resnet20`; it is {defaults}"
        return
    seen: list[str] = []
    for entry in defaults:
        if isinstance(entry, str):
            if entry == "_self_" or {*"@$"} & {*entry}:
                continue
            name = _absolute(entry, own)
            if name == own or not is_choice(*name.partition("/")[::2]):
                missing = "is this file" if name == own else f"there is no file {name}.yaml"
                yield f"`{entry}`: {missing}; a choice of a group is `override /model: resnet20`"
            elif seen:
                yield f"`{entry}` must come before `{seen[0]}`"
        elif isinstance(entry, dict) and len(entry) == 1 and entry.keys() - seen:
            [(key, value)] = entry.items()
            yield from _faults_of_choice(str(key), value)
            seen.append(key)
        else:
            yield f"`{entry}`: give each group one line, such as `- override /model: resnet20`"


def _chosen_in(defaults: list[Any]) -> Iterator[tuple[str, str]]:
    """Group and name of each choice that a defaults list makes."""
    for entry in defaults:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            group = _group_of(str(key))
            for name in value if isinstance(value, list) else [value]:
                yield group, str(name)


def _group_of(key: str) -> str:
    """The group that a key of a defaults list names: `override /model`, `/model` and `model` are `model`."""
    return key.split(" ")[-1].removeprefix("/")


def _faults_of_choice(key: str, value: Any) -> Iterator[str]:
    """The faults of `key: value` in a defaults list. Packages, interpolations and groups not of conf/ are left to
    Hydra.
    """
    group = _group_of(key)
    if (
        {*"@$"} & {*f"{key}{value}"}
        or group.startswith("hydra/")
        or (group and is_group(group) and group not in groups())
    ):
        return
    if group not in groups():
        nearest = difflib.get_close_matches(group, groups(), n=1) or groups()
        yield f"`{key}` names no group: write `override /{' or /'.join(nearest)}`"
    elif isinstance(value, list) and group not in SEVERAL:
        yield f"`{key}: [{', '.join(map(str, value))}]` must be one choice"
    for name in value if isinstance(value, list) else [value]:
        if group in groups() and not is_choice(group, str(name)):
            yield unknown_choice(group, name)
    if key != f"override /{group}":
        yield f"write `{key}: {value}` as `override /{group}: {value}`"


def origin(composed: DictConfig, overrides: Sequence[str]) -> Callable[[str], str]:
    """A function that tells in which file of the user's choices a key stands: ` (in FILE)`; empty if in none."""

    def file_of(key: str) -> str:
        chosen = composed.hydra.runtime.choices
        if any(f"{key}.".startswith(f"{given}.") for given in map(key_of, overrides)):
            return ""
        for group in sorted(groups(), key=lambda group: group != "experiment"):  # an experiment overrides the others
            if not is_choice(group, str(chosen.get(group))):
                continue
            name = f"{group}/{chosen[group]}"
            file, values = conf_file(name), read_conf(name)
            if key in {*paths(values, "" if is_global(file) else f"{group}."), *values.get("sweep", {})}:
                return f" (in {file})"
        return ""

    return file_of
