"""Accuracies of runs in the paper's columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgt.reproduction.formats import Table, datum, sample_data
from pgt.reproduction.groups import Group, data_of, flat, read_groups
from pgt.reproduction.statistics import Sample, paired_difference, sample
from pgt.runs.folder import FINISHED

HEADERS = ("Experiment", "Method", "α", "n", "Train top-1 %", "Diff", "Test top-1 %", "Diff", "Best epoch %")

SMALL_DATA_NOTE = (
    "This shows the whole chain at work on real images; it does not show that PGT helps or hurts on ImageNet: "
    "on small sets the paper itself finds no effect of it (Fig. 12, CIFAR-10)."
)


@dataclass(frozen=True)
class Row:
    """One setting and its seeds.

    Attributes:
        group: whose numbers these are.
        train, test, best: training top-1 (last epoch), test top-1 of the last and of the best epoch, percent.
        train_difference, test_difference: to the experiment's baseline, paired by seed.
        others: runs that are not in the numbers, by status (`unfinished`, `diverged`).
    """

    group: Group
    train: Sample | None
    train_difference: Sample | None
    test: Sample | None
    test_difference: Sample | None
    best: Sample | None
    others: dict[str, int]


def compare(root: Path, experiment: str) -> list[Row]:
    """A row for each setting under an experiment, or a folder of experiments; the baseline first.

    Differences are to the baseline of the same experiment that is alike but for the method.

    Raises:
        InputError: no run there.
    """
    groups = read_groups(root, experiment)
    return [_row(group, _baseline(group, groups)) for group in groups]


def _baseline(group: Group, groups: Sequence[Group]) -> Group | None:
    """The experiment's baseline that is alike but for the method, where it has finished runs and is not the group."""

    def setting(other: Group) -> dict[str, Any]:
        values = flat(other.runs[0][1].identity)
        return {key: value for key, value in values.items() if not key.startswith("method.")}

    for other in groups:
        alike = (other.experiment, other.method) == (group.experiment, "baseline") and setting(other) == setting(group)
        if alike and other.finished and other is not group:
            return other
    return None


def _row(group: Group, baseline: Group | None) -> Row:
    def measured(key: str) -> Sample | None:
        values = list(_by_seed(group, key).values())
        return sample(values) if values else None

    def difference(key: str) -> Sample | None:
        return paired_difference(_by_seed(group, key), _by_seed(baseline, key)) if baseline else None

    return Row(
        group=group,
        train=measured("train_top1"),
        train_difference=difference("train_top1"),
        test=measured("test_top1_final"),
        test_difference=difference("test_top1_final"),
        best=measured("test_top1_best"),
        others=Counter(summary.status for _, summary in group.runs if summary.status != FINISHED),
    )


def _by_seed(group: Group, key: str) -> dict[int, float]:
    return {summary.seed: getattr(summary, key) for _, summary in group.finished}


def build(root: Path, experiment: str) -> Table:
    """The table of an experiment, or a folder of experiments, with a note under it where the data are the demo's.

    Raises:
        InputError: no run there.
    """
    rows = compare(root, experiment)
    notes = [f"Mean ± deviation over n seeds; differences to the baseline are paired by seed. {_data(rows)}"]
    if all(row.group.experiment.startswith("demo/") for row in rows):
        notes.append(SMALL_DATA_NOTE)
    return Table("", HEADERS, [_cells(row) for row in rows], notes)


def raw(root: Path, experiment: str) -> Table:
    """The same as data, for CSV: a number a cell, nothing rounded.

    Raises:
        InputError: no run there.
    """
    lines = [_raw(row) for row in compare(root, experiment)]
    return Table("", list(lines[0]), [[datum(value) for value in line.values()] for line in lines])


def _raw(row: Row) -> dict[str, object]:
    group = row.group
    return {
        "experiment": group.experiment,
        "group_id": group.runs[0][1].group_id,
        "method": group.method,
        "alpha": group.alpha,
        "setting": group.setting,
        "seeds": " ".join(str(seed) for seed in sorted(summary.seed for _, summary in group.finished)),
        "n": len(group.finished),
        **sample_data("train_top1", row.train),
        **sample_data("train_diff", row.train_difference),
        **sample_data("test_top1_final", row.test),
        **sample_data("test_diff", row.test_difference),
        **sample_data("test_top1_best", row.best),
    }


def _data(rows: Sequence[Row]) -> str:
    """What was measured on, and with which seeds."""
    runs = [summary for row in rows for _, summary in row.group.finished]
    sets = data_of(row.group for row in rows)
    seeds = sorted({summary.seed for summary in runs})
    return f"Data: {sets}. Seeds: {', '.join(map(str, seeds))}." if runs else ""


def _cells(row: Row) -> list[str]:
    def text(value: Sample | None) -> str:
        return "" if value is None else str(value)

    def signed(value: Sample | None) -> str:
        return "" if value is None else value.signed()

    group = row.group
    n = str(row.test.n if row.test else 0) + "".join(f", {count} {name}" for name, count in row.others.items())
    return [
        group.experiment,
        " ".join(part for part in (group.method, group.setting) if part),
        f"{group.alpha:g}" if group.alpha != 1 else "",
        n,
        text(row.train),
        signed(row.train_difference),
        text(row.test),
        signed(row.test_difference),
        text(row.best),
    ]
