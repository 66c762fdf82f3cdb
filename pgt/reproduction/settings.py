"""Splits runs by the settings in which they differ, labels them by these alone, and gives their accuracy by epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from pgt.core.words import ranges
from pgt.reproduction.groups import BEST, data_of, joined, sort_key, telling
from pgt.runs.folder import read_epochs
from pgt.runs.frame import config_names

Settings = dict[str, pd.DataFrame]
"""Label -> the runs of a setting, whatever their seeds."""


def settings(runs: pd.DataFrame, names: Sequence[str], known: Sequence[str] = ()) -> Settings:
    """Split runs by those columns among `names` that differ: one part for each combination of values, in their order.

    Args:
        runs: some rows of the frame (see `pgt.runs.frame`).
        names: columns. `method` and `alpha` make one label: `gc+pgt α=0.25`.
        known: columns that need no label, for example that of a figure's horizontal axis.
    """
    told = telling(runs, names, known)
    if not told:
        return {"": runs}
    keys = [runs[name].map(str) for name in told]  # astype(str) leaves None as missing, and groupby drops such rows
    parts = [(_first(members, told), members) for _, members in runs.groupby(keys, sort=False)]
    parts.sort(key=lambda part: [sort_key(*value) for value in part[0].items()])
    taken = Counter(label(values) for values, _ in parts)
    return {label(values, exact=taken[label(values)] > 1): members for values, members in parts}


OF_RECIPE = "method.smoothing"
"""A key of the method that a recipe sets, whether or not there is label smoothing."""


def recipe_names(runs: pd.DataFrame) -> list[str]:
    """The columns that say how runs were trained, the method apart."""
    names = config_names(runs)
    outside = [name for name in names if not name.startswith("method.")]
    return ["experiment", *outside, *(name for name in names if name == OF_RECIPE)]


def method_names(runs: pd.DataFrame) -> list[str]:
    """The columns that say which method runs have."""
    own = [name for name in config_names(runs) if name.startswith("method.") and name != OF_RECIPE]
    return ["method", "alpha", *own]


def _first(runs: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """The values of the first run, as plain Python objects."""
    return {name: runs[name].tolist()[0] for name in names}


def label(values: Mapping[str, Any], exact: bool = False) -> str:
    """Values in a few words: `gc+pgt α=0.25 lr_peak=0.1 cifar10`. A key is its last part, unless two keys share it.

    Args:
        exact: write numbers with all digits instead of six, and name keys whose value is None; used if two short labels
            are equal.
    """
    if "method" in values:
        values = {key: value for key, value in values.items() if not _usual(key, value, exact)}
    ends = [key.rpartition(".")[2] for key in values]
    parts = []
    for key, end in zip(values, ends, strict=True):
        value = values[key]
        if key in ("alpha", "method.alpha"):
            parts.append(f"α={number(value, exact)}")
        elif key in ("experiment", "method") or (end == "name" and value is not None):
            parts.append(str(value))
        else:
            short = key if ends.count(end) > 1 else end
            parts.append(f"{short}={number(value, exact)}")
    return joined(*parts)


def _usual(key: str, value: Any, exact: bool) -> bool:
    """Whether a value needs no word beside the method: α = 1, no label smoothing, or a key that it does not have."""
    if value is None:
        return key.startswith("method.") and not exact
    return (key in ("alpha", "method.alpha") and value == 1) or (key == "method.label_smoothing" and value == 0)


def ordered(name: str, values: Iterable[Any]) -> list[Any]:
    """The distinct values of a column: null, numbers, text; methods as in the paper's tables, α from 1 down."""
    distinct = {str(value): value for value in values}
    return sorted(distinct.values(), key=lambda value: sort_key(name, value))


def number(value: Any, exact: bool = False) -> str:
    """A config value as text: null for None, numbers with at most six digits unless `exact`."""
    return "null" if value is None else f"{value:g}" if isinstance(value, float) and not exact else str(value)


def foremost(found: Settings, most: int, what: str = "settings", keep: str = "") -> tuple[Settings, str]:
    """The `most` settings with the best mean test top-1, and a sentence about it; all of them if there are not more.

    Args:
        what: the word for them in the sentence.
        keep: the label of one to keep in any case.
    """
    if len(found) <= most:
        return found, ""

    def top1(name: str) -> float:
        return float(found[name].groupby("group_id")[BEST].mean().fillna(0).max())

    chosen = sorted(found, key=lambda name: (name != keep, -top1(name)))[:most]
    shown = {name: runs for name, runs in found.items() if name in chosen}
    return shown, f"{most} of {len(found)} {what} are shown: those with the best test top-1."


def by_epoch(runs: pd.DataFrame, metrics: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Each metric of runs by epoch (from 1), a column a run; only the epochs in which every run has it.

    Raises:
        InputError: the records of a run are damaged.
    """
    records = [read_epochs(run, int(epochs)) for run, epochs in zip(runs.run, runs.epochs, strict=True)]
    found = {}
    for name in metrics:
        rows = [{record["epoch"] + 1: record.get(name) for record in run} for run in records]
        found[name] = pd.DataFrame(rows, dtype=float).T.dropna()
    return found


def counted(parts: Iterable[pd.DataFrame]) -> str:
    """The number of seeds of each of several settings: `n = 3`, or `n = 2 to 5` if it is not the same."""
    counts = [len(part) for part in parts]
    return f"n = {min(counts)}" if min(counts) == max(counts) else f"n = {min(counts)} to {max(counts)}"


def source(runs: pd.DataFrame) -> str:
    """The seeds and the data of runs, in a sentence."""
    return f"Seeds {ranges(runs.seed)}. Data: {data_of(runs)}."
