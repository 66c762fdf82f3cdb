"""Composes and checks the configs of a command line, before anything is written and before torch is imported."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, ValueType
from omegaconf import ListConfig, OmegaConf

from pgt.config import launchers
from pgt.config.choices import (
    SEVERAL,
    SeveralRuns,
    check_file,
    check_primary,
    experiments,
    origin,
    own_sweep,
    refuse_bare,
)
from pgt.config.composition import chooses, compose, composed, forget, in_hydra, other_folders, searching_in
from pgt.config.grammar import key_of, parse, quoted, values_of, written
from pgt.config.hints import NAMES_ELSEWHERE, REFUSED, called, one_choice, paths, unknown, unknown_choice
from pgt.config.identity import identity, run_id, with_files
from pgt.config.resources import Sources, is_choice, is_group, own_conf, sources
from pgt.config.rules import validate
from pgt.config.schema import Config
from pgt.core.errors import InputError
from pgt.core.registry import DATA_SETS, PARAMETERS, TIMM

ALWAYS = frozenset({"experiment", "seed", "paths.runs"})
"""Keys that every config has, whatever groups it is made of."""


@dataclass(frozen=True)
class Jobs:
    """The jobs of a command line, checked.

    Attributes:
        overrides: the command line in Hydra's own terms.
        command: the words after `pgt train` that stand for these jobs, whatever the current folder is.
        configs: one for each job, in Hydra's order. If a sweeper chooses the values, a few samples: together they have
            each value of a choice and both ends of each interval.
        hydra: Hydra's own config, of the last job.
    """

    overrides: list[str]
    command: list[str]
    configs: list[Config]
    hydra: HydraConf

    @property
    def searches(self) -> bool:
        """Whether a sweeper chooses the values of the jobs as it goes."""
        return launchers.searches(self.hydra.runtime)

    @property
    def on_slurm(self) -> bool:
        """Whether `hydra/launcher=slurm` submits the jobs."""
        return bool(self.hydra.launcher.get("_target_") == launchers.SLURM)


def compose_all(overrides: Sequence[str], multirun: bool = False) -> list[Config]:
    """The configs of `compose_jobs`."""
    return compose_jobs(overrides, multirun).configs


def compose_jobs(overrides: Sequence[str], multirun: bool = False) -> Jobs:
    """Compose and check every job of a command line.

    Args:
        overrides: Hydra's override grammar.
        multirun: expand sweeps (`seed=0,1,2`) to their product; without it, a sweep is an error.

    Raises:
        InputError: everything that is wrong with the first job that cannot be run.
    """
    for clear in (forget, _keys.cache_clear, check_file.cache_clear):  # in a notebook, files may have been edited since
        clear()
    with _searched(overrides) as rest, in_hydra():
        check_primary()
        spelled = _spell_out(rest, multirun)
        jobs = expand(spelled, multirun)
        choosing = _sweeps_a_group(spelled)
        configs: list[Config] = []
        plugins: list[Any] = []
        for job in jobs:
            try:
                configs.append(_checked(job))
            except InputError as error:
                where = f" (in the job {' '.join(job)})" if len(jobs) > 1 else ""
                raise InputError(f"{error}{where}") from None
            own = HydraConfig.get()
            if choosing and (chosen := _plugins(own)) not in plugins:
                plugins.append(chosen)
        given = _for_sweeper(spelled) if choosing else spelled
        if choosing:
            _refuse_plugins_of_jobs(plugins, given)
        _refuse_doubles(configs, jobs)
        return Jobs([*other_folders(), *given], [*_own_files(), *given], configs, own)


def compose_job(job: Sequence[str]) -> Config:
    """The checked config of a job, given its overrides as a sweeper gives them to a launcher.

    It is called within Hydra's own run, whose global config is set aside and put back afterwards.

    Raises:
        InputError: what is wrong with it.
    """
    before = HydraConfig.instance().cfg
    try:
        with in_hydra():
            return _checked(job)
    finally:
        HydraConfig.instance().cfg = before


def shown(overrides: Sequence[str]) -> list[str]:
    """The overrides of one job in Hydra's own terms, for `--cfg` and the like; keys may still be missing.

    Raises:
        InputError: an unknown key or choice, or a sweep.
    """
    with _searched(overrides) as rest, in_hydra():
        check_primary()
        try:
            [job] = expand(_spell_out(rest, False), False)
        except SeveralRuns as error:
            raise InputError(f"{error.what}, and one job is shown: {error.one}") from None
        if wrong := _unknown_keys(job):
            raise InputError(unknown(wrong, _known(job)))
        return [*other_folders(), *job]


def instead_of_flag(flag: str, following: str) -> str:
    """The override that a flag seems to mean, as recipe.epochs=3 for `--epochs 3`; empty if no key is called so.

    Args:
        following: the next word of the command line.
    """
    name, equals, value = flag.lstrip("-").partition("=")
    with in_hydra():
        known = _known(())
    plain = name.replace("-", "_")
    elsewhere = NAMES_ELSEWHERE.get(plain)
    keys = [name] if name in known else [elsewhere] if elsewhere else called(plain, known)
    value = value if equals else following if following and not re.match(r"-|.*=", following) else "..."
    return " or ".join(f"{key}={value}" for key in keys)


def _sweeps_a_group(overrides: Sequence[str]) -> bool:
    """Whether jobs differ in the choice of a group, such as their experiment."""
    return any(one.is_sweep_override() and is_group(one.key_or_group) for one in map(parse, overrides))


def _plugins(settings: HydraConf) -> Any:
    """The launcher and the sweeper of a job, with their options."""
    return OmegaConf.to_container(OmegaConf.masked_copy(settings, ["launcher", "sweeper"]))  # type: ignore[arg-type]


def _refuse_plugins_of_jobs(plugins: Sequence[Any], overrides: Sequence[str]) -> None:
    """Refuse a sweep whose jobs choose another launcher or sweeper, or other options, than Hydra uses.

    Hydra takes them from a config without the swept choices, such as the experiments of `experiment=a,b`.

    Args:
        plugins: `_plugins` of the jobs, each different one once.
        overrides: those that Hydra gets.
    """
    shared = [text for text in overrides if not parse(text).is_sweep_override()]
    try:
        used = [_plugins(composed(shared).hydra)]
    except InputError as error:
        # Without the swept choices a group may lack one, and Hydra goes on; or a launcher that they name is missing.
        used = [] if "hydra." in str(error) else [*plugins[:1]]
    if plugins != used:
        raise InputError(
            "all jobs of a sweep share a launcher, a sweeper and their options, and the swept choices set some: "
            "give them on the command line, as in hydra/launcher=slurm, or give each choice a command of its own"
        )


def _refuse_doubles(configs: Sequence[Config], jobs: Sequence[Sequence[str]]) -> None:
    """Refuse a sweep that names a run twice, as when method.alpha overrides the α of method=baseline, too."""
    seen: dict[str, Sequence[str]] = {}
    for config, job in zip(configs, jobs, strict=True):
        root = getattr(config.data, "root", None)
        folder = os.path.realpath(root) if root and DATA_SETS[config.data.name].any_files else None
        first = seen.setdefault(run_id(with_files(identity(config), folder)), job)
        if first is not job:
            raise InputError(
                f"two jobs of this sweep are the same run: '{' '.join(first)}' and '{' '.join(job)}'; an override "
                "applies to every job; for a baseline beside PGT: method=pgt method.alpha=1,0.25"
            )


@contextmanager
def _searched(overrides: Sequence[str]) -> Iterator[list[str]]:
    """A context in which `hydra.searchpath` of a command line holds; gives the other overrides.

    Raises:
        InputError: a key is refused, or set twice.
    """
    given: dict[str, str] = {}
    for text in overrides:
        key = parse(text).get_key_element().lstrip("+~")
        for refused, instead in REFUSED.items():
            if f"{key}.".startswith(f"{refused}."):
                raise InputError(f"leave out '{text}': {instead}")
        if parse(text).is_delete() and key.rpartition(".")[2].isdigit():
            raise InputError(f"'{text}': an element of a list cannot be deleted: give the whole list")
        if key in given:
            raise InputError(f"{key} is set twice, by '{given[key]}' and '{text}': leave one of them out")
        given[key] = text
    given.pop("hydra.searchpath", None)
    with own_conf(searched_folders(overrides)):
        yield list(given.values())


def searched_folders(overrides: Sequence[str]) -> list[str]:
    """The folders that `hydra.searchpath` of a command line names.

    Raises:
        InputError: it is no list.
    """
    found: list[str] = []
    for text in overrides:
        if re.match(r"(\+*hydra\.searchpath=|~hydra\.searchpath\b)", text):
            folders = parse(text).value()
            if not isinstance(folders, list):
                raise InputError("hydra.searchpath must be a list: hydra.searchpath=[file://DIR]")
            found += map(str, folders)
    return found


def _own_files() -> list[str]:
    """The words by which `pgt train` finds the user's own files that it finds now."""
    found = sources()
    if found.primary == Sources.primary:
        return searching_in(found.own)
    first = [word for folder in found.own[:1] for word in ("--config-dir", str(folder))]
    return ["--config-name", found.primary, *first, *searching_in(found.own[1:])]


def _spell_out(overrides: Sequence[str], multirun: bool) -> list[str]:
    """Overrides in Hydra's own terms: `experiment=FOLDER/all` and `glob` named one by one, experiments' sweeps added.

    Raises:
        InputError: a folder without experiments, a sweep without `multirun`, or sweeps that do not go together.
    """
    spelled = []
    for text in _with_timm(overrides):
        parsed = parse(text)
        names_files = is_group(parsed.key_or_group) and not parsed.is_delete()
        left = isinstance(parsed.value(), IntervalSweep | RangeSweep) and _searching(overrides)  # to the sweeper
        values = values_of(parsed) if names_files or (parsed.is_sweep_override() and not left) else []
        if parsed.key_or_group == "experiment" and values and all(isinstance(value, str) for value in values):
            names = list(dict.fromkeys(name for value in values for name in experiments(value)))
            if len(names) > 1 and not multirun:
                raise SeveralRuns(f"'{text}' names {len(names)} runs", f"name one, as in experiment={names[0]}")
            spelled += [f"experiment={','.join(map(written, names))}", *own_sweep(names, overrides, multirun)]
        elif names_files and parsed.is_sweep_override():
            spelled.append(f"{parsed.get_key_element()}={','.join(map(written, values))}")
        elif isinstance(parsed.value(), RangeSweep) and any(isinstance(value, float) for value in values):
            # Hydra adds up steps: after 0.1 and 0.2 comes 0.30000000000000004
            spelled.append(f"{parsed.get_key_element()}={','.join(str(float(f'{value:.12g}')) for value in values)}")
        else:
            spelled.append(text)
    return spelled


def _with_timm(overrides: Sequence[str]) -> list[str]:
    """Overrides with model=timm if `model.name` names one of timm's networks and no model is chosen."""
    keys = [key_of(text) for text in overrides]
    named = [text for key, text in zip(keys, overrides, strict=True) if key == "model.name"]
    of_timm = any(str(value).startswith(TIMM) for text in named for value in values_of(parse(text)))
    return [*overrides, "model=timm"] if of_timm and "model" not in keys else list(overrides)


def _for_sweeper(spelled: Sequence[str]) -> list[str]:
    """The overrides of a sweep over choices of a group, so that Hydra's sweepers accept them.

    A sweeper first composes a config without the swept keys. A key that only the swept choices have is not there yet:
    given as a sweep over one value, it is left to the jobs.

    Raises:
        InputError: such a key has a value that would be another one as a sweep's.
    """
    parsed = [parse(text) for text in spelled]
    try:
        there = _known([text for one, text in zip(parsed, spelled, strict=True) if not one.is_sweep_override()])
    except InputError:  # without the swept choices a group may lack one
        there = frozenset()
    return [
        text
        if one.is_sweep_override()
        or one.is_hydra_override()
        or one.is_delete()
        or is_group(one.key_or_group)
        or one.key_or_group in there
        else _as_sweep(one)
        for one, text in zip(parsed, spelled, strict=True)
    ]


def _as_sweep(override: Override) -> str:
    """A sweep over the one value that an override gives to its key."""
    key = override.get_key_element()
    value = override.get_value_element_as_str() or repr("")
    swept = f"{key}=choice({'${oc.decode:null}' if value == 'null' else value})"
    [back] = parse(swept).sweep_string_iterator()
    if value != "null" and repr(parse(f"{key}={back}").value()) != repr(override.value()):  # 1 == True == 1.0
        raise InputError(
            f"'{override.input_line}' does not go with a sweep over a group that has this key in some choices only: "
            "give each choice a command of its own"
        )
    return swept


def expand(overrides: Sequence[str], multirun: bool) -> list[list[str]]:
    """The override lists of the jobs of a command line, in Hydra's order. It needs the context `in_hydra`.

    Raises:
        InputError: an override that does not parse, a sweep over Hydra's own settings, or one without values.
        SeveralRuns: a sweep without `multirun`.
    """
    values = []
    for text in overrides:
        parsed = parse(text)
        if not parsed.is_sweep_override():
            values.append([text])
        elif not multirun or parsed.is_hydra_override():
            key = parsed.key_or_group
            comma = parsed.value_type == ValueType.SIMPLE_CHOICE_SWEEP and not chooses(text)
            mend = f", or if the comma belongs to it, write {_unswept(text, overrides)}" if comma else ""
            if parsed.is_hydra_override():
                raise InputError(
                    f"'{text}' gives several values, but all jobs share Hydra's settings: give {key} one value{mend}"
                )
            if key in SEVERAL:
                mend = f", or for all of them together write {key}=[{text.partition('=')[2]}]"
            raise SeveralRuns(f"'{text}' is a sweep", f"give {key} one value{mend}")
        elif swept := _swept(parsed):
            values.append([f"{parsed.get_key_element()}={value}" for value in swept])
        else:
            raise InputError(f"'{text}' is a sweep without a value: name some, as in {parsed.key_or_group}=range(0,3)")
    if _searching(overrides):  # the product may be vast, and the sweeper tries only a part of it
        most = max(map(len, values), default=1)
        return [[each[min(index, len(each) - 1)] for each in values] for index in range(most)]
    return [list(job) for job in itertools.product(*values)]


def _unswept(text: str, overrides: Sequence[str]) -> str:
    """A sweep `key=a,b` as it is written if it is one value: a list if the key has one, or else a text."""
    key, _, value = text.partition("=")
    try:
        usual = composed([*filter(chooses, overrides)])
        usual = OmegaConf.select(usual, key_of(text), throw_on_resolution_failure=False)
    except InputError:
        usual = None
    return f"'{key}=[{value}]'" if isinstance(usual, ListConfig) else quoted(text)


def _searching(overrides: Sequence[str]) -> bool:
    """Whether the command line, or else a file that it chooses, names a sweeper that chooses the values itself."""
    named = [parse(text).value() for text in overrides if key_of(text) == "hydra/sweeper"]
    if named:
        return named[-1] not in ("basic", None)
    shared = [text for text in overrides if chooses(text) and not parse(text).is_sweep_override()]
    try:
        _check_choices(shared)
        return launchers.searches(composed(shared).hydra.runtime)
    except InputError:  # reported with the first job
        return False


def _swept(override: Override) -> list[str]:
    """The values of a sweep as the grammar writes them; of an interval, both ends."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    return list(override.sweep_string_iterator())


def _checked(overrides: Sequence[str]) -> Config:
    wrong = _unknown_keys(overrides)
    rest = [text for text in overrides if key_of(text) not in wrong]
    job = compose(rest)
    HydraConfig.instance().set_config(job)
    refuse_bare(job, rest)
    place = origin(job, rest)
    said = [unknown([key], _known(overrides)) + place(key) for key in wrong]
    name, file = str(OmegaConf.select(job, "model.name")), job.hydra.runtime.choices.get("model")
    meant = "timm" if name.startswith(TIMM) else name
    if meant in (*PARAMETERS, "timm") and file in (*PARAMETERS, "timm") and file != meant:  # with its interpolation
        said.append(f"model.name={name} goes with model={meant} (in an experiment, `override /model: {meant}`)")
    said += [line + place(key) for key, line in launchers.faults(job)]
    config = validate(job, said, place)
    if changed := list(_changed_texts(config, rest)):
        raise InputError("; ".join(changed))
    return config


def _changed_texts(config: Config, overrides: Sequence[str]) -> Iterator[str]:
    """The overrides of texts that YAML reads as other numbers than are written, as 2024_01_02, each with its mend."""
    for text in overrides:
        typed, value = text.partition("=")[2], parse(text).value()
        if isinstance(value, int | float) and not isinstance(value, bool) and str(value) != typed:
            got: Any = config
            for name in key_of(text).split("."):
                got = getattr(got, name, None)
            if isinstance(got, str):
                yield f"'{text}' is read as the number {got}: write {quoted(text)}"


def _unknown_keys(overrides: Sequence[str]) -> list[str]:
    """The keys of overrides that the chosen groups do not have.

    Raises:
        InputError: choices that are no files of a group.
    """
    _check_choices(overrides)
    keys = dict.fromkeys(key_of(text) for text in overrides if not chooses(text))
    asked = [key for key in keys if not key.startswith("hydra") and key not in ALWAYS]
    known = _known(overrides)
    added = {key_of(text) for text in overrides if parse(text).is_add()}

    def takes_any(key: str) -> bool:
        """Whether a key with a plus is an argument of a function of the user's own, which is checked elsewhere."""
        return key in added and any(f"{key[: end.start()]}._target_" in known for end in re.finditer(r"\.", key))

    return [key for key in asked if key not in known and not takes_any(key)]


def _known(overrides: Sequence[str]) -> frozenset[str]:
    """Every key that the chosen groups have."""
    return _keys(tuple(text for text in overrides if chooses(text)), sources())


@cache
def _keys(chosen: tuple[str, ...], where: Sources) -> frozenset[str]:
    found = paths(OmegaConf.to_container(composed(chosen)))
    return frozenset(key for key in found if key.partition(".")[0] != "hydra")  # its own keys are never meant by a typo


def _check_choices(overrides: Sequence[str]) -> None:
    """Raises InputError if overrides choose what is no file of a group, several files of one, or a file with faults."""
    wrong = []
    for text in overrides:
        parsed = parse(text)
        group, value = parsed.key_or_group, parsed.value()
        if not is_group(group) or parsed.is_delete() or isinstance(value, dict):
            continue
        if isinstance(value, list) and group not in SEVERAL:
            wrong.append(one_choice(group, [str(name) for name in value]))
            continue
        for name in value if isinstance(value, list) else [value]:
            if is_choice(group, str(name)):
                check_file(group, str(name))
            else:
                wrong.append(unknown_choice(group, name))
    if wrong:
        raise InputError("; ".join(wrong))
