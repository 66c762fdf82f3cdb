"""The table of an experiment: the accuracies of its settings beside those of their baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pgt.reproduction.formats import Column, Note, Table, data_table, sample_data, table
from pgt.reproduction.groups import BEST, LAST, TRAIN, Comparison, Group, data_of, joined, read_groups

SMALL_DATA_NOTE = (
    "This shows the whole chain at work on real images; it does not show that PGT helps or hurts on ImageNet: "
    "on small sets the paper itself finds no effect of it (Fig. 12, CIFAR-10)."
)


@dataclass(frozen=True, eq=False)
class Entry(Comparison):
    """A setting of an experiment beside its baseline."""

    group: Group


def _mean(name: str) -> Callable[[Entry], str]:
    return lambda entry: str(entry.measured(name) or "")


def _difference(name: str) -> Callable[[Entry], str]:
    return lambda entry: value.signed() if (value := entry.paired(name)) else ""


COLUMNS: Sequence[Column[Entry]] = (
    ("Experiment", lambda entry: entry.group.experiment),
    ("Method", lambda entry: joined(entry.group.method, entry.group.setting)),
    ("α", lambda entry: f"{entry.group.alpha:g}" if entry.group.alpha != 1 else ""),
    ("n", lambda entry: entry.count),
    ("Train top-1 %", _mean(TRAIN)),
    ("Diff", _difference(TRAIN)),
    ("Test top-1 %", _mean(LAST)),
    ("Diff", _difference(LAST)),
    ("Best epoch %", _mean(BEST)),
)
"""Header and cell of each printed column."""


def compare(root: Path, experiment: str) -> list[Entry]:
    """Compare each setting of an experiment, or of a folder of experiments, with the experiment's baseline of the same
    recipe; the baseline comes first.

    Raises:
        InputError: there is no run of it.
    """
    groups = read_groups(root, experiment)
    bases = [group for group in groups if group.method == "baseline" and not group.finished.empty]

    def baseline(group: Group) -> pd.DataFrame:
        alike = (b for b in bases if (b.experiment, b.recipe) == (group.experiment, group.recipe) and b is not group)
        return next((base.runs for base in alike), group.runs[:0])

    return [Entry(group.runs, baseline(group), group) for group in groups]


def experiment_table(root: Path, experiment: str) -> Table:
    """The table of an experiment, or of a folder of experiments; if its data are the demo's, a note says so.

    Raises:
        InputError: there is no run of it.
    """
    entries = compare(root, experiment)
    runs = pd.concat([entry.group.finished for entry in entries])
    seeds = ", ".join(map(str, sorted(runs.seed.unique())))
    measured = f" Data: {data_of(runs)}. Seeds: {seeds}." if len(runs) else ""
    notes = [f"Mean ± deviation over n seeds; differences to the baseline are paired by seed.{measured}"]
    if all(entry.group.experiment.startswith("demo/") for entry in entries):
        notes.append(SMALL_DATA_NOTE)
    return table(entries, COLUMNS, notes=[Note(text) for text in notes])


def experiment_data(root: Path, experiment: str) -> Table:
    """The same as data, for CSV: a number a cell, nothing rounded.

    Raises:
        InputError: there is no run of it.
    """
    return data_table([_data(entry) for entry in compare(root, experiment)])


def _data(entry: Entry) -> dict[str, object]:
    group = entry.group
    return {
        "experiment": group.experiment,
        "group_id": group.runs.group_id.iloc[0],
        "method": group.method,
        "alpha": group.alpha,
        "setting": group.setting,
        "seeds": " ".join(map(str, entry.seeds)),
        "n": len(entry.seeds),
        **sample_data(TRAIN, entry.measured(TRAIN)),
        **sample_data("train_diff", entry.paired(TRAIN)),
        **sample_data(LAST, entry.measured(LAST)),
        **sample_data("test_diff", entry.paired(LAST)),
        **sample_data(BEST, entry.measured(BEST)),
    }
