"""The table of an experiment: the accuracies of its settings beside those of their baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from pgt.core.words import ranges
from pgt.reproduction import epochs_needed, published
from pgt.reproduction.formats import Column, Note, Table, data_table, sample_data, table
from pgt.reproduction.groups import BEST, LAST, TRAIN, Group, data_of, joined, warnings
from pgt.reproduction.statistics import Sample, interval

SMALL_DATA_NOTE = (
    "This shows the whole chain at work on real images; it does not show that PGT helps or hurts on ImageNet: "
    "on small sets the paper itself finds no effect of it (Fig. 12, CIFAR-10)."
)


GAINS_NOTE = (
    "Published: about so many points of accuracy on that data set (abstract of arXiv 2305.18445); it names neither the "
    "network, the learning rate nor the measure."
)


def _mean(name: str) -> Callable[[Group], str]:
    return lambda group: str(group.measured(name) or "")


def _difference(name: str) -> Callable[[Group], str]:
    return lambda group: value.signed() if (value := group.paired(name)) else ""


def _published_gain(group: Group) -> str:
    gain = published.amplification_gains().get(group.runs["data.name"].iloc[0])
    return f"+{gain:g}" if gain and group.method.startswith("amplification") else ""


COLUMNS: Sequence[Column[Group]] = (
    ("Experiment", lambda group: group.experiment),
    ("Method", lambda group: joined(group.method, group.setting)),
    ("α", lambda group: f"{group.alpha:g}" if group.alpha != 1 else ""),
    ("n", lambda group: group.count),
    ("Train top-1 %", _mean(TRAIN)),
    ("Diff", _difference(TRAIN)),
    ("Test top-1 %", _mean(LAST)),
    ("Diff", _difference(LAST)),
    ("Best epoch %", _mean(BEST)),
)
"""Header and cell of each printed column."""


def experiment_table(groups: Sequence[Group]) -> Table:
    """The table of the groups of an experiment, or of a folder of them; a note says so if it is the demo."""
    runs = pd.concat([group.finished for group in groups])
    measured = f" Data: {data_of(runs)}. Seeds: {ranges(runs.seed)}." if len(runs) else ""
    notes = [f"Mean ± deviation over n seeds; differences to the baseline are paired by seed.{measured}"]
    if all(group.experiment.startswith("demo/") for group in groups):
        notes.append(SMALL_DATA_NOTE)
    columns = [*COLUMNS]
    if any(map(_published_gain, groups)):
        columns, notes = [*columns, ("Diff: published", _published_gain)], [*notes, GAINS_NOTE]
    if epochs_needed.about_correction(groups):
        columns, notes = [*columns, ("Epochs to the baseline's best", epochs_needed.cell)], [*notes, epochs_needed.NOTE]
    return table(groups, columns, notes=[*map(Note, notes), *warnings(runs)])


def experiment_data(groups: Sequence[Group]) -> Table:
    """The table of an experiment's groups as data for CSV: one number a cell, nothing rounded."""
    rows = [_data(group) for group in groups]
    if epochs_needed.about_correction(groups):
        for row, (needed, never) in zip(rows, map(epochs_needed.epochs_needed, groups), strict=True):
            row |= {**sample_data("epochs_to_baseline", needed), "never_to_baseline": never}
    return data_table(rows)


def _data(group: Group) -> dict[str, object]:
    return {
        "experiment": group.experiment,
        "group_id": group.runs.group_id.iloc[0],
        "method": group.method,
        "alpha": group.alpha,
        "setting": group.setting,
        "seeds": " ".join(map(str, group.seeds)),
        **group.counts,
        **sample_data(TRAIN, group.measured(TRAIN)),
        **_difference_data("train_diff", group.paired(TRAIN)),
        **sample_data(LAST, group.measured(LAST)),
        **_difference_data("test_diff", group.paired(LAST)),
        **sample_data(BEST, group.measured(BEST)),
    }


def _difference_data(name: str, value: Sample | None) -> dict[str, object]:
    """A paired difference with its confidence interval as four columns of data."""
    low, high = interval(value) if value else (None, None)
    return {**sample_data(name, value), f"{name}_low": low, f"{name}_high": high}
