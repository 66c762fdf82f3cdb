"""Tables 1, 2 and 3: the paper's columns, and further ones for the measured values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from pgt.reproduction import cost, published
from pgt.reproduction.formats import Column, Note, Table, data_table, sample_data, table
from pgt.reproduction.groups import BEST, LAST, METHODS, TRAIN, finished, joined, warnings
from pgt.reproduction.paper import ARMS, EXACT, Arm, Line, expected, measure, truncation
from pgt.reproduction.published import NOTES, Row
from pgt.reproduction.statistics import CONFIDENCE, MARGIN, NOT_RUN, POWER, UNDECIDED, Difference, signed
from pgt.runs.folder import UNFINISHED

NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "seresnet18": "SE-ResNet-18",
    "seresnet50": "SE-ResNet-50",
    "resnet18_nobn": "ResNet-18, no BN",
}

TITLES = {
    1: "Table 1: networks with batch norm, ImageNet-1K",
    2: "Table 2: ResNet-18 without batch norm, ImageNet-1K",
    3: "Table 3: label smoothing, ResNet-50, ImageNet-1K",
}

RULE = (
    "Top-1 in percent, mean ± sample deviation over n seeds. The verdict goes by the best epoch, which is what the "
    f"authors' code kept. A method's row is *reproduced* when the {CONFIDENCE:.0%} interval of the difference to its "
    "baseline (Student's t over pairs of one seed; Welch's if seeds do not pair) lies on the published side of zero "
    "(*smaller*, *larger*: it excludes the published size), *not reproduced* when it does not and the published "
    "difference lies beyond it, else *undecided*, with the pairs that a paired t-test needs to show the published "
    f"difference at a power of {POWER:.0%}. A baseline is *reproduced* when the interval of its mean lies within "
    f"{MARGIN:g} points of the published accuracy, *not reproduced* when it lies wholly outside. If runs of a row or "
    "of its baseline diverged, the row says so in the place of a verdict. Label smoothing is compared with the plain "
    "baseline, PGT with label smoothing with label smoothing alone. Adding seeds until the verdict is decided makes a "
    "false *reproduced* more likely than the interval says (docs/reproduction.md)."
)


def _published(header: str, text: Callable[[Row], str]) -> Column[Line]:
    """A column about the row itself: its cell is empty in the row's further lines."""
    return header, lambda line: text(line.row) if line.first else ""


def _marked(row: Row) -> str:
    """The published test accuracy, with the numbers of the notes about it."""
    marks = f" [{', '.join(map(str, row.notes))}]" if row.notes else ""
    return f"{row.test_top1:.3f}{marks}"


def _points(value: float | None, digits: int) -> str:
    """A published difference; empty if there is none."""
    return "" if value is None else signed(value, digits)


OURS = f"ours [{CONFIDENCE:.0%}]"


def _verdict(line: Line) -> str:
    return str(line.verdict) if line.verdict.name != NOT_RUN else f"{NOT_RUN} ({_hours(line.row)})"


SCHEDULE = _published("Schedule", lambda row: row.schedule)
METHOD = _published("Method", lambda row: METHODS[row.method])
ALPHA = _published("α", lambda row: f"{row.alpha:g}" if row.alpha != 1 else "")

KEYS: Mapping[int, Sequence[Column[Line]]] = {
    1: (_published("Network", lambda row: NETWORKS[row.model]), SCHEDULE, METHOD, ALPHA),
    2: (_published("Batch", lambda row: str(row.batch)), METHOD, ALPHA),
    3: (
        _published("Row", lambda row: str(row.number)),
        SCHEDULE,
        _published("Smoothing", lambda row: f"{row.label_smoothing:g}" if row.label_smoothing else ""),
        ALPHA,
    ),
}
"""Header and cell of the columns that name a row of each table."""

NUMBERS: Sequence[Column[Line]] = (
    ("Recipe", lambda line: joined(str(line.arm), line.setting)),
    ("n", lambda line: line.count),
    _published("Train: paper", lambda row: f"{row.train_top1:.2f}"),
    ("ours", lambda line: str(line.measured(TRAIN) or "")),
    _published("Test: paper", _marked),
    _published("authors' README", lambda row: "" if row.readme_top1 is None else f"{row.readme_top1:.3f}"),
    ("ours, best epoch", lambda line: str(line.measured(BEST) or "")),
    ("ours, last epoch", lambda line: str(line.measured(LAST) or "")),
    _published("Diff: paper", lambda row: _points(published.difference(row), 3)),
    (OURS, lambda line: str(line.difference(BEST) or "")),
)
"""Header and cell of the columns that follow in every table."""

TRAIN_DIFF: Sequence[Column[Line]] = (
    _published("Train diff: paper", lambda row: _points(published.difference(row, "train_top1"), 2)),
    (OURS, lambda line: str(line.difference(TRAIN) or "")),
)
GAP: Sequence[Column[Line]] = (
    _published("Gap: paper", lambda row: _points(published.gap(row), 3)),
    ("ours", lambda line: gap.signed() if (gap := line.gap) else ""),
)
MORE: Mapping[int, Sequence[Column[Line]]] = {1: TRAIN_DIFF, 2: TRAIN_DIFF, 3: GAP}
"""Header and cell of the columns of each table that compare training accuracies."""

GAP_NOTE = "Gap: training top-1 minus test top-1; of ours, that of the last epoch minus that of the best, seed by seed."


def paper_table(runs: pd.DataFrame, number: int, narrow: bool = False) -> Table:
    """One of the paper's tables, filled by runs as `pgt.runs.frame` gives them.

    Args:
        narrow: leave out the columns `MORE`, with which the lines are too long for a terminal.
    """
    lines, strays = measure(runs, number)
    more = () if narrow else MORE[number]
    touching = {mark for line in lines for mark in line.row.notes}
    told = [f"[{mark}] {doubt.text}" for mark, doubt in NOTES.items() if mark in touching or not doubt.about]
    notes = [Note(RULE), Note(items=told)]
    if more == GAP:
        notes.append(Note(GAP_NOTE))
    if strays:
        outside = [f"{n} run{'s' if n > 1 else ''} of {name}: {how}" for (name, how), n in strays.items()]
        notes.append(Note("Not in the table:", outside))
    notes += warnings(finished(pd.concat([line.runs for line in lines])))
    if commands := _commands(lines):
        head = f"To fill it (GPU-hours on {cost.DEFAULT_GPU} by published speeds):"
        if all(line.verdict.name == NOT_RUN for line in lines):
            head += f" `pgt train -m experiment=table{number}/all recipe=paper,authors seed=0,1,2`, or one by one:"
        notes.append(Note(head, commands))
    return table(lines, (*KEYS[number], *NUMBERS, *more, ("Verdict", _verdict)), TITLES[number], notes)


def paper_data(runs: pd.DataFrame, tables: Sequence[int]) -> Table:
    """Several of the paper's tables as one of data, for CSV: a number a cell, nothing rounded."""
    return data_table([_data(line) for number in tables for line in measure(runs, number)[0]])


def _data(line: Line) -> dict[str, object]:
    row, verdict = line.row, line.verdict
    return {
        "table": row.table,
        "row": row.number,
        "experiment": row.experiment,
        "model": row.model,
        "schedule": row.schedule,
        "batch_size": row.batch,
        "method": row.method,
        "alpha": row.alpha,
        "label_smoothing": row.label_smoothing,
        "recipe": line.arm.recipe,
        "implementation": line.arm.implementation,
        "setting": line.setting,
        "seeds": " ".join(map(str, line.seeds)),
        **line.counts,
        "train_top1_paper": row.train_top1,
        "train_diff_paper": _rounded(published.difference(row, "train_top1")),
        "test_top1_paper": row.test_top1,
        "test_top1_readme": row.readme_top1,
        "test_diff_paper": _rounded(published.difference(row)),
        "gap_paper": _rounded(published.gap(row)),
        **sample_data(TRAIN, line.measured(TRAIN)),
        **_difference_data("train_diff", line.difference(TRAIN)),
        **sample_data(BEST, line.measured(BEST)),
        **_difference_data(f"{BEST}_diff", line.difference(BEST)),
        **sample_data(LAST, line.measured(LAST)),
        **sample_data("gap", line.gap),
        "verdict": verdict.name,
        "verdict_detail": verdict.detail,
        "seeds_needed": verdict.seeds,
        "notes": " ".join(map(str, row.notes)),
    }


def _rounded(value: float | None) -> float | None:
    """A difference of published numbers, with as many digits as these have."""
    return None if value is None else round(value, 3)


def _difference_data(name: str, value: Difference | None) -> dict[str, object]:
    """A difference with its confidence interval as five columns of data."""
    return {
        name: value and value.mean,
        f"{name}_low": value and value.low,
        f"{name}_high": value and value.high,
        f"{name}_n": value and value.n,
        f"{name}_paired": value and value.paired,
    }


def _hours(row: Row) -> str:
    """The time of one run of the row, in words."""
    speed = cost.published_speed(row.model, cost.DEFAULT_GPU)
    if speed is None:
        return "cost not known"
    work = cost.work(expected(row, ARMS[0]))
    return f"{work.gpu_seconds(speed.images_per_second) / 3600:.0f} GPU-h"


FEW = 30
"""The most seeds that a command names: nobody shows a difference that needs more."""


class Training(NamedTuple):
    """A training of a row without its seed. `experiment` and `setting` are overrides, `hours` is the time of a run."""

    experiment: str
    setting: str
    recipe: str
    hours: str


def _training(row: Row, arm: Arm, setting: str) -> Training:
    """The training of a row in an arm and a setting."""
    experiment = f"experiment={row.experiment}"
    if arm.implementation != EXACT and row.alpha <= published.TRUNCATED:
        experiment = f"experiment={truncation(row.experiment)}"
    elif arm.implementation != EXACT:
        batch = f"recipe.local_batch={row.batch // 4}" if row.model.endswith("_nobn") else ""
        experiment = joined(experiment, f"method.implementation={arm.implementation}", batch)
    return Training(experiment, setting, arm.recipe, _hours(row))


def _commands(lines: Sequence[Line]) -> list[str]:
    """Commands that run the rows that are not run, and those that decide the undecided ones: on both sides of a
    difference."""
    ended: dict[Training, set[int]] = {}
    wanted: dict[Training, set[int]] = defaultdict(set)
    for line in lines:
        own, base = _training(line.row, line.arm, line.setting), published.baseline(line.row)
        ended[own] = set(line.runs.seed[line.runs.status != UNFINISHED])
        needed = 1 if line.verdict.name == NOT_RUN else line.verdict.seeds or 0
        if 0 < needed <= FEW:
            wanted[own] |= set(range(needed))
            if base and line.verdict.name == UNDECIDED:
                free = joined(*(part for part in line.setting.split() if not part.startswith("method.")))
                wanted[_training(base, Arm(line.arm.recipe, EXACT), free)] |= set(range(needed))
    recipes: dict[tuple[Training, tuple[int, ...]], list[str]] = defaultdict(list)
    for training, numbers in wanted.items():
        if missing := tuple(sorted(numbers - ended.get(training, set()))):
            recipes[training._replace(recipe=""), missing].append(training.recipe)
    return [_command(training, seeds, names) for (training, seeds), names in recipes.items()]


def _command(training: Training, seeds: Sequence[int], recipes: Sequence[str]) -> str:
    many = "-m" if len(seeds) * len(recipes) > 1 else ""
    recipe = f"recipe={','.join(recipes)}" if list(recipes) != ["paper"] else ""
    seed = f"seed={','.join(map(str, seeds))}"
    overrides = joined(many, training.experiment, recipe, training.setting, seed)
    return f"`pgt train {overrides}` ({training.hours} a run)"
