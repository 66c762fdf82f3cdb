"""From a command line to checked configs, before anything is written and before torch is imported."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pgt.config import Config, identity
from pgt.errors import InputError
from pgt.resources import conf_dir
from pgt.runs import run_id
from pgt.validate import validate


def compose_all(overrides: Sequence[str], multirun: bool = False) -> list[Config]:
    """Compose and check every job of a command line.

    Args:
        overrides: Hydra's override grammar.
        multirun: expand sweeps (`seed=0,1,2`) to their product; otherwise a sweep is an error.

    Raises:
        InputError: at the first thing that does not fit, whichever job it is in.
    """
    jobs = expand(overrides, multirun)
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


def expand(overrides: Sequence[str], multirun: bool) -> list[list[str]]:
    """The override lists of the jobs of a command line, in Hydra's order.

    Raises:
        InputError: an override that does not parse, or a sweep without `multirun`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    choices: dict[str, list[str]] = {}
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException:
            raise InputError(f"cannot read the override '{text}': write key=value, in Hydra's grammar") from None
        key = parsed.get_key_element()
        if not parsed.key_or_group:
            raise InputError(f"cannot read the override '{text}': write key=value")
        if not parsed.is_sweep_override():
            choices[key] = [text]
        elif not multirun and not parsed.is_hydra_override():
            raise InputError(f"'{text}' is a sweep: add -m to run all of it")
        elif not parsed.is_discrete_sweep():
            raise InputError(f"'{text}' is no finite sweep: name the values, as in {key}=0.1,0.2")
        else:
            choices[key] = [f"{key}={value}" for value in parsed.sweep_string_iterator()]
    return [list(job) for job in itertools.product(*choices.values())]


@contextmanager
def _hydra() -> Iterator[None]:
    from hydra import initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        yield


def _compose(overrides: Sequence[str]) -> Config:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    _check_keys(overrides)
    try:
        composed = hydra.compose("train", list(overrides), return_hydra_config=True)
    except HydraException as error:
        raise InputError(_one_line(error)) from None
    HydraConfig.instance().set_config(composed)
    return validate(composed)


def check_shown(overrides: Sequence[str]) -> None:
    """Refuse what `--cfg` cannot show; keys may still be missing.

    Raises:
        InputError: an unknown key or choice.
    """
    with _hydra():
        for job in expand(overrides, multirun=True):
            _check_keys(job)


def _check_keys(overrides: Sequence[str]) -> None:
    """Refuse a key that the chosen groups do not have, naming the nearest that they have."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    groups = [text for text in overrides if _is_group(_key(text))]
    try:
        composed = hydra.compose("train", groups)
    except (HydraException, ValueError) as error:
        raise InputError(_group_error(groups) or _one_line(error)) from None
    known = _paths(OmegaConf.to_container(composed))
    for text in overrides:
        key = _key(text)
        if text in groups or key.startswith("hydra") or key in known:
            continue
        raise InputError(f"unknown key '{key}'{_hint(key, known)}")


def _hint(key: str, known: set[str]) -> str:
    from omegaconf import OmegaConf

    group, _, rest = key.partition(".")
    owners = [path.stem for path in sorted((conf_dir() / group).glob("*.yaml")) if rest in OmegaConf.load(path).keys()]
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
        value = text.partition("=")[2]
        folder = conf_dir() / _key(text)
        if value in ("", "null") or not folder.is_dir() or (folder / f"{value}.yaml").is_file():
            continue
        options = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        nearest = difflib.get_close_matches(value, options, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"choose one of {', '.join(options)}"
        return f"unknown {_key(text)} '{value}': {hint}"
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
