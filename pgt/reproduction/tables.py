"""The table of an experiment: the accuracies of its settings beside those of their baselines."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pgt.reproduction.formats import Table, data_table, sample_data
from pgt.reproduction.groups import Group, by_seed, data_of, joined, measured, read_groups, unfinished, warnings
from pgt.reproduction.statistics import Sample, paired_difference

HEADERS = ("Experiment", "Method", "α", "n", "Train top-1 %", "Diff", "Test top-1 %", "Diff", "Best epoch %")

SMALL_DATA_NOTE = (
    "This shows the whole chain at work on real images; it does not show that PGT helps or hurts on ImageNet: "
    "on small sets the paper itself finds no effect of it (Fig. 12, CIFAR-10)."
)


TRAIN, TEST, BEST = "train_top1", "test_top1_final", "test_top1_best"
"""Training top-1 of the last epoch, test top-1 of the last and of the best epoch, percent."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """A setting beside its baseline, if that has finished runs."""

    group: Group
    baseline: Group | None

    def measured(self, name: str) -> Sample | None:
        return measured(self.group.runs, name)

    def difference(self, name: str) -> Sample | None:
        """The difference to the baseline, paired by seed."""
        if self.baseline is None:
            return None
        return paired_difference(by_seed(self.group.runs, name), by_seed(self.baseline.runs, name))


def compare(root: Path, experiment: str) -> list[Comparison]:
    """Compare each setting of an experiment, or of a folder of experiments, with the experiment's baseline of the same
    recipe; the baseline comes first.

    Raises:
        InputError: there is no run of it.
    """
    groups = read_groups(root, experiment)
    baselines: dict[tuple[str, tuple[str, ...]], list[Group]] = defaultdict(list)
    for group in groups:
        if group.method == "baseline" and not group.finished.empty:
            baselines[group.experiment, group.recipe].append(group)
    return [
        Comparison(group, next((base for base in baselines[group.experiment, group.recipe] if base is not group), None))
        for group in groups
    ]


def experiment_table(root: Path, experiment: str) -> Table:
    """The table of an experiment, or of a folder of experiments; if its data are the demo's, a note says so.

    Raises:
        InputError: there is no run of it.
    """
    rows = compare(root, experiment)
    runs = pd.concat([row.group.finished for row in rows])
    seeds = ", ".join(map(str, sorted(runs.seed.unique())))
    measured = f" Data: {data_of(runs)}. Seeds: {seeds}." if len(runs) else ""
    notes = [f"Mean ± deviation over n seeds; differences to the baseline are paired by seed.{measured}"]
    if all(row.group.experiment.startswith("demo/") for row in rows):
        notes.append(SMALL_DATA_NOTE)
    if warned := warnings(runs):
        notes.append("\n".join(warned))
    return Table("", HEADERS, [_cells(row) for row in rows], notes)


def experiment_data(root: Path, experiment: str) -> Table:
    """The same as data, for CSV: a number a cell, nothing rounded.

    Raises:
        InputError: there is no run of it.
    """
    return data_table([_data(row) for row in compare(root, experiment)])


def _data(row: Comparison) -> dict[str, object]:
    group = row.group
    return {
        "experiment": group.experiment,
        "group_id": group.group_id,
        "method": group.method,
        "alpha": group.alpha,
        "setting": group.setting,
        "seeds": " ".join(map(str, sorted(group.finished.seed))),
        "n": group.finished.seed.nunique(),
        **sample_data(TRAIN, row.measured(TRAIN)),
        **sample_data("train_diff", row.difference(TRAIN)),
        **sample_data(TEST, row.measured(TEST)),
        **sample_data("test_diff", row.difference(TEST)),
        **sample_data(BEST, row.measured(BEST)),
    }


def _cells(row: Comparison) -> list[str]:
    def text(value: Sample | None) -> str:
        return "" if value is None else str(value)

    def signed(value: Sample | None) -> str:
        return "" if value is None else value.signed()

    group = row.group
    others = "".join(f", {count} {status}" for status, count in unfinished(group.runs).items())
    return [
        group.experiment,
        joined(group.method, group.setting),
        f"{group.alpha:g}" if group.alpha != 1 else "",
        f"{group.finished.seed.nunique()}{others}",
        text(row.measured(TRAIN)),
        signed(row.difference(TRAIN)),
        text(row.measured(TEST)),
        signed(row.difference(TEST)),
        text(row.measured(BEST)),
    ]
