"""Runs in groups of one setting, whatever their seeds."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pgt.config.resources import choices
from pgt.core.errors import InputError
from pgt.reproduction.statistics import Sample, sample
from pgt.runs.folder import FINISHED, UNFINISHED
from pgt.runs.frame import config_names, frame
from pgt.runs.labels import with_alpha

METHODS = ("baseline", "gc", "agc", "pgt", "gc+pgt", "agc+pgt")
"""The paper's order."""


@dataclass(frozen=True, eq=False)
class Group:
    """The seeds of one setting of an experiment.

    Attributes:
        experiment, group_id, method, alpha: as in `pgt.runs.frame`.
        setting: what else tells it from other groups of the experiment, as `recipe.epochs=2`; empty if nothing does.
        recipe: every config value outside the method, as text. A group and its baseline have the same.
        runs: the rows of the frame, of any status.
    """

    experiment: str
    group_id: str
    method: str
    alpha: float
    setting: str
    recipe: tuple[str, ...]
    runs: pd.DataFrame

    @property
    def label(self) -> str:
        """Method, α and setting in a few words."""
        return joined(with_alpha(self.method, self.alpha), self.setting)

    @property
    def finished(self) -> pd.DataFrame:
        return finished(self.runs)


def read_groups(root: Path, experiment: str) -> list[Group]:
    """The groups of an experiment, or of a folder of experiments: by experiment, the baseline first.

    Raises:
        InputError: there is no run of it.
    """
    runs = frame(root, experiment)
    if runs.empty:
        raise InputError(f"no runs under {root / experiment}: {_way_out(experiment)}")
    return grouped(runs)


def grouped(runs: pd.DataFrame) -> list[Group]:
    """Runs in groups: by experiment, the baseline first."""
    heads = runs.drop_duplicates(["experiment", "group_id"])
    of_method = [name for name in config_names(runs) if name.startswith("method.")]
    others = [name for name in config_names(runs) if name not in of_method]
    recipes = _settings(heads, ["experiment"], others)
    methods = _settings(heads, ["experiment", "method", "alpha"], of_method)
    shared = dict(zip(heads.index, zip(*(heads[name].astype(str) for name in others), strict=True), strict=True))
    members = dict(iter(runs.groupby(["experiment", "group_id"])))
    found = [
        Group(name, group, method, alpha, joined(recipes[at], methods[at]), shared[at], members[name, group])
        for at, name, group, method, alpha in zip(
            heads.index, heads.experiment, heads.group_id, heads.method, heads.alpha, strict=True
        )
    ]
    return sorted(found, key=lambda group: (group.experiment, _position(group.method), -group.alpha, group.setting))


def _settings(heads: pd.DataFrame, by: list[str], names: Sequence[str]) -> dict[Any, str]:
    """For each row, by index: its values, as overrides, in the columns that differ among rows with equal `by`."""
    found: dict[Any, str] = {}
    for _, alike in heads.groupby(by):
        told = varying(alike, names)
        texts = [overrides(values) for values in alike[told].to_dict("records")]
        found.update(zip(alike.index, texts, strict=True))
    return found


def varying(runs: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Those of the columns that have more than one value."""
    return [name for name in names if any(value != runs[name].iloc[0] for value in runs[name])]


def overrides(values: Mapping[Any, Any]) -> str:
    """Values as the command line takes them: `recipe.epochs=2 data.backend=null`."""
    return " ".join(f"{key}={'null' if value is None else value}" for key, value in values.items())


def unlike(values: Mapping[str, Any], others: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value, other value) for each key in which two configs differ; a missing key counts as null."""
    keys = [*values, *(key for key in others if key not in values)]
    return [(key, values.get(key), others.get(key)) for key in keys if values.get(key) != others.get(key)]


def farthest(runs: pd.DataFrame, by: str = "run_id") -> pd.DataFrame:
    """Each run once, however many folders it lies in: the copy that has come farthest."""
    order = runs.assign(ended=runs.status != UNFINISHED)
    order = order.sort_values(["ended", "epochs"], ascending=False, kind="stable")
    return runs.loc[sorted(order.drop_duplicates(by).index)]


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished runs among them."""
    return runs[runs.status == FINISHED]


def unfinished(runs: pd.DataFrame) -> dict[str, int]:
    """Count the runs of each status other than finished. They are not in the numbers."""
    return dict(Counter(runs.status[runs.status != FINISHED]))


def warnings(runs: pd.DataFrame) -> list[str]:
    """A line for each run whose last epoch had a warning, as if its network learns nothing, below a headline."""
    warned = runs[runs.warning.notna()]
    lines = [f"- {run}: {warning}" for run, warning in zip(warned.run, warned.warning, strict=True)]
    return ["Warnings of the last epoch:", *lines] if lines else []


def by_seed(runs: pd.DataFrame, name: str) -> dict[int, float]:
    """A measured value of the finished runs of one setting, by their seeds."""
    done = finished(runs)
    return dict(zip(done.seed.tolist(), done[name].tolist(), strict=True))


def measured(runs: pd.DataFrame, name: str) -> Sample | None:
    """Mean and deviation of a measured value over the finished runs of one setting; None if there are none."""
    values = list(by_seed(runs, name).values())
    return sample(values) if values else None


def data_of(runs: pd.DataFrame) -> str:
    """The data sets that runs were measured on."""
    return ", ".join((runs["data.name"] + " (" + runs.manifest + ")").unique())


def joined(*parts: str) -> str:
    """The parts that are not empty, with spaces between them."""
    return " ".join(part for part in parts if part)


def _way_out(experiment: str) -> str:
    """The advice for an experiment that has no runs."""
    names = choices("experiment")
    folders = sorted({name.rpartition("/")[0] for name in names})
    if experiment in names:
        return f"run `pgt train experiment={experiment}` first"
    if experiment.strip("/") in folders:
        return f"run `pgt train -m experiment={experiment.strip('/')}/all` first"
    nearest = difflib.get_close_matches(experiment, [*names, *folders], n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"name one out of {', '.join(folders)}, or of your own"
    return f"there is no experiment of this name; {hint}"


def _position(method: str) -> int:
    return METHODS.index(method) if method in METHODS else len(METHODS)
