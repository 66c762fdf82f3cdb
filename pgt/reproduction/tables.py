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
class Line(Comparison):
    """A setting of an experiment beside its baseline."""

    group: Group


def _mean(name: str) -> Callable[[Line], str]:
    return lambda line: str(line.measured(name) or "")


def _difference(name: str) -> Callable[[Line], str]:
    return lambda line: value.signed() if (value := line.paired(name)) else ""


COLUMNS: Sequence[Column[Line]] = (
    ("Experiment", lambda line: line.group.experiment),
    ("Method", lambda line: joined(line.group.method, line.group.setting)),
    ("α", lambda line: f"{line.group.alpha:g}" if line.group.alpha != 1 else ""),
    ("n", lambda line: line.count),
    ("Train top-1 %", _mean(TRAIN)),
    ("Diff", _difference(TRAIN)),
    ("Test top-1 %", _mean(LAST)),
    ("Diff", _difference(LAST)),
    ("Best epoch %", _mean(BEST)),
)
"""Header and cell of each printed column."""


def compare(root: Path, experiment: str) -> list[Line]:
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

    return [Line(group.runs, baseline(group), group) for group in groups]


def experiment_table(root: Path, experiment: str) -> Table:
    """The table of an experiment, or of a folder of experiments; if its data are the demo's, a note says so.

    Raises:
        InputError: there is no run of it.
    """
    lines = compare(root, experiment)
    runs = pd.concat([line.group.finished for line in lines])
    seeds = ", ".join(map(str, sorted(runs.seed.unique())))
    measured = f" Data: {data_of(runs)}. Seeds: {seeds}." if len(runs) else ""
    notes = [f"Mean ± deviation over n seeds; differences to the baseline are paired by seed.{measured}"]
    if all(line.group.experiment.startswith("demo/") for line in lines):
        notes.append(SMALL_DATA_NOTE)
    return table(lines, COLUMNS, notes=[Note(text) for text in notes])


def experiment_data(root: Path, experiment: str) -> Table:
    """The same as data, for CSV: a number a cell, nothing rounded.

    Raises:
        InputError: there is no run of it.
    """
    return data_table([_data(line) for line in compare(root, experiment)])


def _data(line: Line) -> dict[str, object]:
    group = line.group
    return {
        "experiment": group.experiment,
        "group_id": group.runs.group_id.iloc[0],
        "method": group.method,
        "alpha": group.alpha,
        "setting": group.setting,
        "seeds": " ".join(map(str, line.seeds)),
        "n": len(line.seeds),
        **sample_data(TRAIN, line.measured(TRAIN)),
        **sample_data("train_diff", line.paired(TRAIN)),
        **sample_data(LAST, line.measured(LAST)),
        **sample_data("test_diff", line.paired(LAST)),
        **sample_data(BEST, line.measured(BEST)),
    }
