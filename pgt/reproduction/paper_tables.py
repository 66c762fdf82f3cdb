"""Tables 1, 2 and 3: the paper's columns, and further ones for the measured values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pandas as pd

from pgt.reproduction import cost, published
from pgt.reproduction.formats import Table, data_table, sample_data
from pgt.reproduction.groups import finished, joined, unfinished, warnings
from pgt.reproduction.paper import ARMS, BEST, EXACT, Arm, Line, Stray, expected, measure, truncation
from pgt.reproduction.published import NOTES, Row
from pgt.reproduction.statistics import CONFIDENCE, MARGIN, NOT_RUN, POWER, UNDECIDED
from pgt.runs.folder import UNFINISHED

NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "seresnet18": "SE-ResNet-18",
    "seresnet50": "SE-ResNet-50",
    "resnet18_nobn": "ResNet-18, no BN",
}

METHODS = {
    "baseline": "baseline",
    "pgt": "PGT",
    "gc": "GC",
    "agc": "AGC",
    "gc+pgt": "GC + PGT",
    "agc+pgt": "AGC + PGT",
}

TITLES = {
    1: "Table 1: networks with batch norm, ImageNet-1K",
    2: "Table 2: ResNet-18 without batch norm, ImageNet-1K",
    3: "Table 3: label smoothing, ResNet-50, ImageNet-1K",
}

MEASURED = (
    "Recipe",
    "n",
    "Train: paper",
    "ours",
    "Test: paper",
    "authors' README",
    "ours, best epoch",
    "ours, last epoch",
    "Diff: paper",
    f"ours [{CONFIDENCE:.0%}]",
    "Verdict",
)

RULE = (
    "Top-1 in percent, mean ± sample deviation over n seeds. The verdict goes by the best epoch, which is what the "
    f"authors' code kept. A method's row is *reproduced* when the {CONFIDENCE:.0%} interval of the difference to its "
    "baseline (Student's t over pairs of one seed; Welch's where seeds do not pair) lies on the published side of zero "
    "(*smaller*, *larger*: it excludes the published size), *not reproduced* when it does not and the published "
    "difference lies beyond it, else *undecided*, with the pairs that a paired t-test needs to show the published "
    f"difference at a power of {POWER:.0%}. A baseline is *reproduced* when the interval of its mean lies within "
    f"{MARGIN:g} points of the published accuracy, *not reproduced* when it lies wholly outside. A row of which runs "
    "diverged says so in the place of a verdict. Label smoothing is compared with the plain baseline, PGT with label "
    "smoothing with label smoothing alone. Adding seeds until the verdict is decided makes a false *reproduced* more "
    "likely than the interval says (docs/reproduction.md)."
)

ALL_ROWS = (4, 7)
"""Numbers of the notes that hold for every row."""


def paper_table(runs: pd.DataFrame, table: int) -> Table:
    """One of the paper's tables, filled by runs as `pgt.runs.frame` gives them."""
    lines, strays = measure(runs, table)
    keys = _keys(table)
    touching = sorted({number for line in lines for number in line.row.notes} | set(ALL_ROWS))
    notes = [RULE, "\n".join(f"- [{number}] {NOTES[number]}" for number in touching)]
    if strays:
        notes.append("\n".join(["Not in the table:", *map(_stray, strays)]))
    if warned := warnings(finished(pd.concat([line.runs for line in lines]))):
        notes.append("\n".join(warned))
    if commands := _commands(lines):
        head = f"To fill it (GPU-hours on {cost.DEFAULT_GPU} by published speeds):"
        if all(line.verdict.name == NOT_RUN for line in lines):
            head += f" `pgt train -m experiment=table{table}/all recipe=paper,authors seed=0`, or one by one:"
        notes.append("\n".join([head, *commands]))
    return Table(TITLES[table], [*keys, *MEASURED], _cells(lines, table), notes)


def paper_data(runs: pd.DataFrame, tables: Sequence[int]) -> Table:
    """Several of the paper's tables as one of data, for CSV: a number a cell, nothing rounded."""
    return data_table([_data(line) for table in tables for line in measure(runs, table)[0]])


def _data(line: Line) -> dict[str, object]:
    row, claim, gain, verdict = line.row, published.difference(line.row), line.difference(BEST), line.verdict
    train = line.difference("train_top1")
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
        "n": len(line.seeds),
        "train_top1_paper": row.train_top1,
        "test_top1_paper": row.test_top1,
        "test_top1_readme": row.readme_top1,
        "test_diff_paper": None if claim is None else round(claim, 3),
        **sample_data("train_top1", line.measured("train_top1")),
        **sample_data(BEST, line.measured(BEST)),
        **sample_data("test_top1_final", line.measured("test_top1_final")),
        "test_diff": gain and gain.mean,
        "test_diff_low": gain and gain.low,
        "test_diff_high": gain and gain.high,
        "test_diff_n": gain and gain.n,
        "test_diff_paired": gain and gain.paired,
        "train_diff": train and train.mean,
        "verdict": verdict.name,
        "verdict_detail": verdict.detail,
        "seeds_needed": verdict.seeds,
        "notes": " ".join(map(str, row.notes)),
    }


def _keys(table: int) -> list[str]:
    return {
        1: ["Network", "Schedule", "Method", "α"],
        2: ["Batch", "Method", "α"],
        3: ["Row", "Schedule", "Smoothing", "α"],
    }[table]


def _cells(lines: Sequence[Line], table: int) -> list[list[str]]:
    """The cells of every line; the row's own are not repeated in its further lines."""
    rows: list[list[str]] = []
    before = None
    for line in lines:
        own = _own(line.row, table)
        rows.append([*(own if line.row != before else [""] * len(own)), *_measured(line, line.row != before)])
        before = line.row
    return rows


def _own(row: Row, table: int) -> list[str]:
    alpha = f"{row.alpha:g}" if row.alpha != 1 else ""
    return {
        1: [NETWORKS[row.model], row.schedule, METHODS[row.method], alpha],
        2: [str(row.batch), METHODS[row.method], alpha],
        3: [str(row.number), row.schedule, f"{row.label_smoothing:g}" if row.label_smoothing else "", alpha],
    }[table]


def _measured(line: Line, first: bool) -> list[str]:
    """The columns `MEASURED`; the paper's own only in the first line of a row."""
    row, claim = line.row, published.difference(line.row)
    marks = f" [{', '.join(map(str, row.notes))}]" if row.notes else ""
    others = "".join(f", {count} {status}" for status, count in unfinished(line.runs).items())
    readme = f"{row.readme_top1:.3f}" if row.readme_top1 is not None else ""
    paper = (f"{row.train_top1:.2f}", f"{row.test_top1:.3f}{marks}", readme, "" if claim is None else _signed(claim))
    train, test, printed, gain = paper if first else ("",) * 4
    return [
        joined(str(line.arm), line.setting),
        f"{len(line.seeds)}{others}",
        train,
        _text(line.measured("train_top1")),
        test,
        printed,
        _text(line.measured(BEST)),
        _text(line.measured("test_top1_final")),
        gain,
        _text(line.difference(BEST)),
        str(line.verdict) if line.verdict.name != NOT_RUN else f"{NOT_RUN} ({_hours(row)})",
    ]


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _hours(row: Row) -> str:
    """The time of one run of the row, in words."""
    speed = cost.published_speed(row.model, cost.DEFAULT_GPU)
    if speed is None:
        return "cost not known"
    work = cost.work(expected(row, ARMS[0]))
    return f"{work.gpu_seconds(speed.images_per_second) / 3600:.0f} GPU-h"


def _commands(lines: Sequence[Line]) -> list[str]:
    """Commands that run the rows that are not run, and those that decide the undecided ones: on both sides of a
    difference."""
    wanted: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    ended: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    hours: dict[str, str] = {}

    def name(row: Row, arm: Arm, setting: str) -> tuple[str, str, str]:
        experiment = _experiment(row, arm)
        hours[experiment] = _hours(row)
        return experiment, setting, arm.recipe

    for line in lines:
        own, base = name(line.row, line.arm, line.setting), published.baseline(line.row)
        needed = 1 if line.verdict.name == NOT_RUN else line.verdict.seeds or 0
        ended[own] |= set(line.runs.seed[line.runs.status != UNFINISHED])
        if 0 < needed <= FEW:
            wanted[own] |= set(range(needed))
            if base and line.verdict.name == UNDECIDED:
                free = joined(*(part for part in line.setting.split() if not part.startswith("method.")))
                wanted[name(base, Arm(line.arm.recipe, EXACT), free)] |= set(range(needed))
    recipes: dict[tuple[str, str, tuple[int, ...]], list[str]] = defaultdict(list)
    for key, numbers in wanted.items():
        experiment, setting, recipe = key
        if missing := tuple(sorted(numbers - ended[key])):
            recipes[experiment, setting, missing].append(recipe)
    return [_command(*command, of, hours[command[0]]) for command, of in recipes.items()]


FEW = 30
"""The most seeds that a command names: nobody shows a difference that needs more."""


def _experiment(row: Row, arm: Arm) -> str:
    """The experiment that trains a row in an arm, and the overrides that it needs."""
    if arm.implementation == EXACT:
        return row.experiment
    if row.alpha <= published.TRUNCATED:
        return truncation(row.experiment)
    batch = f" recipe.local_batch={row.batch // 4}" if row.model.endswith("_nobn") else ""
    return f"{row.experiment} method.implementation={arm.implementation}{batch}"


def _command(experiment: str, setting: str, seeds: Sequence[int], recipes: Sequence[str], hours: str) -> str:
    many = "-m " if len(seeds) * len(recipes) > 1 else ""
    recipe = f"recipe={','.join(recipes)}" if list(recipes) != ["paper"] else ""
    seed = f"seed={','.join(map(str, seeds))}"
    return f"- `pgt train {many}{joined(f'experiment={experiment}', recipe, setting, seed)}` ({hours} a run)"


def _stray(stray: Stray) -> str:
    runs = "1 run" if stray.count == 1 else f"{stray.count} runs"
    return f"- {runs} of {stray.experiment}: {stray.differing}"
