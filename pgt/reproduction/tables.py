"""Accuracies of runs in the paper's columns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgt.errors import InputError
from pgt.reproduction.statistics import Sample, paired_difference, sample
from pgt.runs import FINISHED, Summary, atomic_write, find, method_label

ORDER = ("baseline", "gc", "agc", "pgt", "gc+pgt", "agc+pgt")

HEADERS = ("Experiment", "Method", "α", "n", "Train top-1 %", "Diff", "Test top-1 %", "Diff", "Best epoch %")

SMALL_DATA_NOTE = (
    "This shows the whole chain at work on real images; it does not show that PGT helps or hurts on ImageNet: "
    "on small sets the paper itself finds no effect of it (Fig. 12, CIFAR-10)."
)


@dataclass(frozen=True)
class Row:
    """One setting and its seeds.

    Attributes:
        experiment: where its runs lie.
        method: see `pgt.runs.method_label`.
        alpha: of PGT; 1 is the baseline.
        train, test, best: training top-1 (last epoch), test top-1 of the last and of the best epoch, percent.
        train_difference, test_difference: to the experiment's baseline, paired by seed.
        others: runs that are not in the numbers, by status (`unfinished`, `diverged`).
    """

    experiment: str
    method: str
    alpha: float
    train: Sample | None
    train_difference: Sample | None
    test: Sample | None
    test_difference: Sample | None
    best: Sample | None
    others: dict[str, int]


def compare(root: Path, experiment: str) -> list[Row]:
    """A row for each setting under an experiment, or a folder of experiments; the baseline first.

    Raises:
        InputError: no run there.
    """
    summaries = [summary for _, summary in find(root, experiment)]
    if not summaries:
        raise InputError(f"no runs under {root / experiment}: run `pgt train experiment={experiment}` first")
    settings: dict[tuple[str, str], list[Summary]] = defaultdict(list)
    for summary in summaries:
        settings[summary.experiment or "custom", summary.group_id].append(summary)
    baselines = {
        name: group
        for (name, _), group in settings.items()
        if method_label(group[0].identity) == "baseline" and _finished(group)
    }
    rows = [_row(name, group, baselines.get(name)) for (name, _), group in settings.items()]
    return sorted(rows, key=lambda row: (row.experiment, position(row.method), -row.alpha))


def _row(experiment: str, group: Sequence[Summary], baseline: Sequence[Summary] | None) -> Row:
    identity = group[0].identity
    method = method_label(identity)

    def measured(key: str) -> Sample | None:
        values = list(_by_seed(group, key).values())
        return sample(values) if values else None

    def difference(key: str) -> Sample | None:
        if baseline is None or method == "baseline":
            return None
        return paired_difference(_by_seed(group, key), _by_seed(baseline, key))

    return Row(
        experiment=experiment,
        method=method,
        alpha=identity["method"]["alpha"],
        train=measured("train_top1"),
        train_difference=difference("train_top1"),
        test=measured("test_top1_final"),
        test_difference=difference("test_top1_final"),
        best=measured("test_top1_best"),
        others=Counter(summary.status for summary in group if summary.status != FINISHED),
    )


def _finished(group: Sequence[Summary]) -> list[Summary]:
    return [summary for summary in group if summary.status == FINISHED]


def _by_seed(group: Sequence[Summary], key: str) -> dict[int, float]:
    return {summary.seed: getattr(summary, key) for summary in _finished(group)}


def position(method: str) -> int:
    """Where a method stands in tables and legends: in the paper's order, others behind."""
    return ORDER.index(method) if method in ORDER else len(ORDER)


def render(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, with a note under it where the data are the demo's."""
    from tabulate import tabulate

    table = tabulate([_cells(row) for row in rows], HEADERS, tablefmt="github", disable_numparse=True)
    notes = ["Mean ± deviation over n seeds; differences to the baseline are paired by seed."]
    if all(row.experiment.startswith("demo/") for row in rows):
        notes.append(SMALL_DATA_NOTE)
    return "\n\n".join([table, *notes])


def _cells(row: Row) -> list[str]:
    def text(value: Sample | None) -> str:
        return "" if value is None else str(value)

    def signed(value: Sample | None) -> str:
        return "" if value is None else value.signed()

    n = str(row.test.n if row.test else 0) + "".join(f", {count} {name}" for name, count in row.others.items())
    return [
        row.experiment,
        row.method,
        f"{row.alpha:g}" if row.alpha != 1 else "",
        n,
        text(row.train),
        signed(row.train_difference),
        text(row.test),
        signed(row.test_difference),
        text(row.best),
    ]


def write(path: Path, text: str) -> None:
    """Replace `path` by the text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((text + "\n").encode())
