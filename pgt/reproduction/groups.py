"""Runs in groups of one setting, whatever their seeds."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgt.config.identity import method_label, method_title
from pgt.config.resources import choices
from pgt.core.errors import InputError
from pgt.runs.folder import FINISHED, Summary, find

METHODS = ("baseline", "gc", "agc", "pgt", "gc+pgt", "agc+pgt")
"""The paper's order."""


@dataclass(frozen=True)
class Group:
    """The seeds of one setting of an experiment.

    Attributes:
        experiment: where the runs lie.
        method: see `pgt.runs.method_label`.
        alpha: of PGT; 1 is the baseline.
        setting: what else tells it from other groups of the experiment, as `recipe.epochs=2`; empty where nothing
            does.
        runs: (folder, summary), of any status.
    """

    experiment: str
    method: str
    alpha: float
    setting: str
    runs: Sequence[tuple[Path, Summary]]

    @property
    def label(self) -> str:
        """Method, α and setting in a few words."""
        return " ".join(part for part in (method_title(self.runs[0][1].identity), self.setting) if part)

    @property
    def finished(self) -> list[tuple[Path, Summary]]:
        return [(folder, summary) for folder, summary in self.runs if summary.status == FINISHED]


def read_groups(root: Path, experiment: str) -> list[Group]:
    """The groups under an experiment, or a folder of experiments: by experiment, the baseline first.

    Raises:
        InputError: no run there.
    """
    runs: dict[tuple[str, str], list[tuple[Path, Summary]]] = defaultdict(list)
    for folder, summary in find(root, experiment):
        runs[summary.experiment or "custom", summary.group_id].append((folder, summary))
    if not runs:
        raise InputError(f"no runs under {root / experiment}: {_way_out(experiment)}")
    of_experiment: dict[str, list[dict[str, Any]]] = defaultdict(list)
    of_method: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for (name, _), members in runs.items():
        values = flat(members[0][1].identity)
        of_experiment[name].append({key: value for key, value in values.items() if not key.startswith("method.")})
        of_method[name, *_method(members)].append({k: v for k, v in values.items() if k.startswith("method.")})
    groups = []
    for (name, _), members in runs.items():
        method, alpha = _method(members)
        values = flat(members[0][1].identity)
        own = setting_of(values, of_experiment[name]), setting_of(values, of_method[name, method, alpha])
        groups.append(Group(name, method, alpha, " ".join(part for part in own if part), members))
    return sorted(groups, key=lambda group: (group.experiment, _position(group.method), -group.alpha, group.setting))


def _way_out(experiment: str) -> str:
    """What to do where a name has no runs."""
    names = choices("experiment")
    folders = sorted({name.rpartition("/")[0] for name in names})
    if experiment in names:
        return f"run `pgt train experiment={experiment}` first"
    if experiment.strip("/") in folders:
        return f"run `pgt train -m experiment={experiment.strip('/')}/all` first"
    nearest = difflib.get_close_matches(experiment, [*names, *folders], n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"name one out of {', '.join(folders)}, or of your own"
    return f"there is no experiment of this name; {hint}"


def _method(members: Sequence[tuple[Path, Summary]]) -> tuple[str, float]:
    identity = members[0][1].identity
    return method_label(identity), identity["method"]["alpha"]


def flat(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of an identity, as an override would name them; the seed left out."""
    found: dict[str, Any] = {}
    for key, value in identity.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" != "seed" and value != []:
            found[f"{prefix}{key}"] = value
    return found


def data_of(groups: Iterable[Group]) -> str:
    """The data sets that finished runs were measured on."""
    runs = [summary for group in groups for _, summary in group.finished]
    return ", ".join(dict.fromkeys(f"{summary.identity['data']['name']} ({summary.manifest})" for summary in runs))


def unlike(values: Mapping[str, Any], others: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys and both values where two settings differ; a key that one lacks counts as null there."""
    keys = [*values, *(key for key in others if key not in values)]
    return [(key, values.get(key), others.get(key)) for key in keys if values.get(key) != others.get(key)]


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping whose dotted keys these are."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *groups, last = key.split(".")
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return found


def setting_of(values: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """The values that not all of `others` share, of the keys that these have; null where it has none."""
    keys = dict.fromkeys(key for other in others for key in other)
    told = [key for key in keys if any(other.get(key) != values.get(key) for other in others)]
    return " ".join(f"{key}={'null' if values.get(key) is None else values[key]}" for key in told)


def _position(method: str) -> int:
    return METHODS.index(method) if method in METHODS else len(METHODS)
