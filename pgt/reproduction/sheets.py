"""Tables 1, 2 and 3 as they are printed: the paper's layout, with what was measured in further columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from pgt.reproduction import cost, published
from pgt.reproduction.formats import Table
from pgt.reproduction.paper import EXACT, Line, Stray, measure
from pgt.reproduction.published import NOTES, Row
from pgt.reproduction.statistics import CONFIDENCE, MARGIN, NOT_RUN, POWER, UNDECIDED

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
    "measured",
    "Test: paper",
    "README",
    "best epoch",
    "last epoch",
    "Diff: paper",
    f"measured [{CONFIDENCE:.0%}]",
    "Verdict",
)

RULE = (
    "Top-1 in percent, mean ± sample deviation over n seeds. The verdict goes by the best epoch, which is what the "
    "authors' code kept. A method's row is *reproduced* when the interval of the difference to its baseline (paired by "
    f"seed; Student's t, {CONFIDENCE:.0%}) lies on the published side of zero, *not reproduced* when it does not and "
    "the published difference lies beyond it, else *undecided*, with the pairs that a paired t-test needs to show the "
    f"published difference at a power of {POWER:.0%}. A baseline is *reproduced* when the interval of its mean lies "
    f"within {MARGIN:g} points of the published accuracy, *not reproduced* when it lies wholly outside. Label "
    "smoothing is compared with the plain baseline, PGT with label smoothing with label smoothing alone."
)

ALL_ROWS = (4, 7)
"""Notes that touch every row."""


def build(root: Path, table: int) -> Table:
    """One of the paper's tables with the runs under `root`."""
    lines, strays = measure(root, table)
    keys = _keys(table)
    touching = sorted({number for line in lines for number in line.row.notes} | set(ALL_ROWS))
    notes = [RULE, "\n".join(f"- [{number}] {NOTES[number]}" for number in touching)]
    if strays:
        notes.append("\n".join(["Not in the table:", *map(_stray, strays)]))
    if commands := _commands(lines):
        head = f"To fill it (GPU-hours on a {cost.DEFAULT_GPU} by published speeds):"
        notes.append("\n".join([head, *commands]))
    return Table(TITLES[table], [*keys, *MEASURED], _cells(lines, table), notes)


def raw(root: Path, table: int) -> Table:
    """The same as data, for CSV: a number a cell, nothing rounded."""
    headers = ["table", "row", "experiment", "model", "schedule", "batch_size", "method", "alpha", "label_smoothing"]
    headers += ["recipe", "implementation", "setting", "seeds", "n"]
    headers += ["train_top1_paper", "test_top1_paper", "test_top1_readme", "test_diff_paper"]
    for name in ("train_top1", "test_top1_best", "test_top1_final"):
        headers += [name, f"{name}_deviation"]
    headers += ["test_diff", "test_diff_low", "test_diff_high", "train_diff", "verdict", "seeds_needed", "notes"]
    return Table("", headers, [_raw(line) for line in measure(root, table)[0]])


def _raw(line: Line) -> list[str]:
    row, claim = line.row, published.difference(line.row)
    cells: list[object] = [row.table, row.number, row.experiment, row.model, row.schedule, row.batch, row.method]
    cells += [row.alpha, row.label_smoothing, line.arm.recipe, line.arm.implementation, line.setting]
    cells += [" ".join(map(str, line.seeds)), len(line.seeds), row.train_top1, row.test_top1, row.readme_top1]
    cells.append(None if claim is None else round(claim, 3))
    for value in (line.train, line.best, line.final):
        cells += [value.mean, value.deviation] if value else [None, None]
    gain = line.difference
    cells += [gain.mean, gain.low, gain.high] if gain else [None, None, None]
    cells += [line.train_difference.mean if line.train_difference else None, line.verdict.name, line.verdict.seeds]
    cells.append(" ".join(map(str, row.notes)))
    return ["" if cell is None or cell != cell else str(cell) for cell in cells]


def _keys(table: int) -> list[str]:
    return {
        1: ["Network", "Schedule", "Method", "α"],
        2: ["Batch", "Method", "α"],
        3: ["Row", "Schedule", "Smoothing", "α"],
    }[table]


def _cells(lines: Sequence[Line], table: int) -> list[list[str]]:
    """The cells of every line; what the line above says already of the row is not repeated."""
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
    row, claim = line.row, published.difference(line.row)
    marks = f" [{', '.join(map(str, row.notes))}]" if row.notes else ""
    others = "".join(f", {count} {status}" for status, count in line.others.items())
    readme = f"{row.readme_top1:.3f}" if row.readme_top1 is not None else ""
    paper = [f"{row.train_top1:.2f}", f"{row.test_top1:.3f}{marks}", readme, "" if claim is None else _signed(claim)]
    train, test, readme, gain = paper if first else [""] * 4
    return [
        " ".join(part for part in (str(line.arm), line.setting) if part),
        f"{len(line.seeds)}{others}",
        train,
        _text(line.train),
        test,
        readme,
        _text(line.best),
        _text(line.final),
        gain,
        _text(line.difference),
        str(line.verdict) if line.verdict.name != NOT_RUN else f"{NOT_RUN} ({_hours(row)})",
    ]


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _hours(row: Row) -> str:
    """Time of one run of the row, in words."""
    speed = cost.published_speed(row.model, cost.DEFAULT_GPU)
    epochs = 100
    if speed is None:
        return "cost not known"
    work = cost.work(
        {
            "data": {"name": "imagenet", "drop_last": True},
            "recipe": {"epochs": epochs, "global_batch": row.batch},
            "trainer": {"evaluate_every": 1},
            "model": {"name": row.model},
        }
    )
    return f"{work.gpu_seconds(speed.images_per_second) / 3600:.0f} GPU-h"


def _commands(lines: Sequence[Line]) -> list[str]:
    """What would run the rows that are not run, and decide those that are undecided."""
    wanted: dict[tuple[str, tuple[int, ...]], dict[str, Line]] = defaultdict(dict)
    for line in lines:
        name = line.row.experiment
        if line.arm.implementation != EXACT:
            name = f"truncation/{name.replace('/', '_')}"
        if seeds := _new_seeds(line):
            wanted[name, tuple(seeds)][line.arm.recipe] = line
    return [_command(name, seeds, recipes) for (name, seeds), recipes in wanted.items()]


def _command(name: str, seeds: Sequence[int], recipes: Mapping[str, Line]) -> str:
    many = "-m " if len(seeds) * len(recipes) > 1 else ""
    recipe = f" recipe={','.join(recipes)}" if list(recipes) != ["paper"] else ""
    cost = _hours(next(iter(recipes.values())).row)
    return f"- `pgt train {many}experiment={name}{recipe} seed={','.join(map(str, seeds))}` ({cost} a run)"


FEW = 30
"""Seeds that a command names; a difference that needs more will not be shown so."""


def _new_seeds(line: Line) -> list[int]:
    if line.verdict.name == NOT_RUN:
        return [0]
    if line.verdict.name != UNDECIDED or line.setting or not line.verdict.seeds or line.verdict.seeds > FEW:
        return []
    free = (seed for seed in range(line.verdict.seeds + len(line.seeds)) if seed not in line.seeds)
    return [next(free) for _ in range(line.verdict.seeds - len(line.seeds))]


def _stray(stray: Stray) -> str:
    runs = "1 run" if stray.count == 1 else f"{stray.count} runs"
    return f"- {runs} of {stray.experiment}: {stray.differing}"
