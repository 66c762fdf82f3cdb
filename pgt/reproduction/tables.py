"""The table of an experiment: the accuracies of its settings beside those of their baselines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pgt.reproduction.formats import Table, data_table, sample_data
from pgt.reproduction.groups import Group, by_seed, data_of, joined, read_groups
from pgt.reproduction.statistics import Sample, paired_difference, sample
from pgt.runs.folder import FINISHED

HEADERS = ("Experiment", "Method", "α", "n", "Train top-1 %", "Diff", "Test top-1 %", "Diff", "Best epoch %")

SMALL_DATA_NOTE = (
    "This shows the whole chain at work on real images; it does not show that PGT helps or hurts on ImageNet: "
    "on small sets the paper itself finds no effect of it (Fig. 12, CIFAR-10)."
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A setting beside its baseline.

    Attributes:
        group: the setting's runs.
        train, test, best: training top-1 (last epoch), test top-1 of the last and of the best epoch, percent.
        train_difference, test_difference: to the baseline, paired by seed; None without a baseline.
        others: how many runs of each status other than finished there are. They are not in the numbers.
    """

    group: Group
    train: Sample | None
    train_difference: Sample | None
    test: Sample | None
    test_difference: Sample | None
    best: Sample | None
    others: Mapping[str, int]


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
        _compare(group, next((base for base in baselines[group.experiment, group.recipe] if base is not group), None))
        for group in groups
    ]


def _compare(group: Group, baseline: Group | None) -> Comparison:
    def measured(name: str) -> Sample | None:
        values = list(by_seed(group.finished, name).values())
        return sample(values) if values else None

    def difference(name: str) -> Sample | None:
        return paired_difference(by_seed(group.finished, name), by_seed(baseline.finished, name)) if baseline else None

    status = group.runs.status
    return Comparison(
        group=group,
        train=measured("train_top1"),
        train_difference=difference("train_top1"),
        test=measured("test_top1_final"),
        test_difference=difference("test_top1_final"),
        best=measured("test_top1_best"),
        others={str(name): count for name, count in status[status != FINISHED].value_counts(sort=False).items()},
    )


def experiment_table(root: Path, experiment: str) -> Table:
    """The table of an experiment, or of a folder of experiments; if its data are the demo's, a note says so.

    Raises:
        InputError: there is no run of it.
    """
    rows = compare(root, experiment)
    runs = pd.concat([row.group.finished for row in rows])
    seeds = ", ".join(map(str, sorted(runs.seed.unique())))
    measured = f"Data: {data_of(runs)}. Seeds: {seeds}." if len(runs) else ""
    notes = [f"Mean ± deviation over n seeds; differences to the baseline are paired by seed. {measured}"]
    if all(row.group.experiment.startswith("demo/") for row in rows):
        notes.append(SMALL_DATA_NOTE)
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
        "n": len(group.finished),
        **sample_data("train_top1", row.train),
        **sample_data("train_diff", row.train_difference),
        **sample_data("test_top1_final", row.test),
        **sample_data("test_diff", row.test_difference),
        **sample_data("test_top1_best", row.best),
    }


def _cells(row: Comparison) -> list[str]:
    def text(value: Sample | None) -> str:
        return "" if value is None else str(value)

    def signed(value: Sample | None) -> str:
        return "" if value is None else value.signed()

    group = row.group
    n = str(row.test.n if row.test else 0) + "".join(f", {count} {name}" for name, count in row.others.items())
    return [
        group.experiment,
        joined(group.method, group.setting),
        f"{group.alpha:g}" if group.alpha != 1 else "",
        n,
        text(row.train),
        signed(row.train_difference),
        text(row.test),
        signed(row.test_difference),
        text(row.best),
    ]
