"""The paper's tables as data: what each row claims, which experiment reproduces it, and which doubts there are."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from pgt.config.resources import repository_folder

IMAGE_SIZE = 224
"""Pixels of a training image, a side."""


@dataclass(frozen=True)
class Row:
    """A row of Table 1, 2 or 3.

    Attributes:
        table, number: its table, and its place there, from 1 as printed.
        model, schedule: names of the config groups.
        batch: global batch size.
        method: as `pgt.runs.labels.method_label` names it.
        alpha: α of PGT; 1 without it.
        label_smoothing: ε.
        train_top1, test_top1: percent, as printed.
        readme_top1: test top-1 in the README of the authors' code; None if that has none.
        experiment: the config that reproduces this row. Several rows may share one.
    """

    table: int
    number: int
    model: str
    schedule: str
    batch: int
    method: str
    alpha: float
    label_smoothing: float
    train_top1: float
    test_top1: float
    readme_top1: float | None = None
    experiment: str = ""

    @property
    def setting(self) -> tuple[Any, ...]:
        """The values that tell its run from the runs of other rows."""
        return self.model, self.schedule, self.batch, self.method, self.alpha, self.label_smoothing

    @property
    def notes(self) -> tuple[int, ...]:
        """The numbers of the `NOTES` about it, without those about all rows."""
        return tuple(number for number, note in NOTES.items() if note.about and note.about(self))


@dataclass(frozen=True)
class Doubt:
    """A place where the paper disagrees with itself or with its code.

    Attributes:
        text: what is said in which place.
        about: whether a row is concerned; None: every row is.
    """

    text: str
    about: Callable[[Row], bool] | None = None


NOTES: Mapping[int, Doubt] = {
    1: Doubt(
        "ResNet-50, step, 76.494 / 79.56: Table 1 says α = 0.05, Table 3 (row 2) and the README say α = 0.3. "
        "Both are experiments here.",
        lambda row: row.alpha != 1 and (row.model, row.schedule) == ("resnet50", "step"),
    ),
    2: Doubt(
        "The abstract gives +0.73 to ResNet-50 and +0.66 to SE-ResNet-50; Table 1 gives +0.656 and +0.734.",
        lambda row: (row.table, row.method, row.schedule) == (1, "pgt", "cosine") and "resnet50" in row.model,
    ),
    3: Doubt(
        "Table 2 says 67.814, the README 67.796.",
        lambda row: (row.table, row.batch, row.method) == (2, 256, "pgt"),
    ),
    4: Doubt(
        "All rows. Peak learning rate: 0.4 from 4e-4 in the paper, 0.1 from 0.01 in the README's commands. "
        "recipe=paper and recipe=authors are the two readings."
    ),
    5: Doubt(
        "Label smoothing: ε/(K−1) on each wrong class in the paper (Eq. 7), ε/K on each class in the code.",
        lambda row: row.label_smoothing > 0,
    ),
    6: Doubt(
        "Eq. 5 is called clipping by value but clips by norm; the thresholds of GC and AGC are unpublished "
        "(here 1.0 and 0.01).",
        lambda row: row.method.split("+")[0] in ("gc", "agc"),
    ),
    7: Doubt(
        "All rows with PGT. The published listing computes Eq. 9 only if the loss scale equals the squared batch "
        "of a process."
    ),
    8: Doubt(
        "One run a row: differences this small rest on one seed on either side.",
        lambda row: (claim := difference(row)) is not None and abs(claim) < SMALL,
    ),
    9: Doubt(
        "The caption of Fig. 4(b) gives α = 0.3 for ResNet-50 and refers to Table 1, which has 0.05.",
        lambda row: (row.table, row.model, row.schedule, row.method) == (1, "resnet50", "cosine", "pgt"),
    ),
    10: Doubt(
        "In fp16 the authors' code flushes small probabilities to zero before the power, the more the larger the "
        "logits, which grow as α falls. experiment=truncation/... repeats it.",
        lambda row: row.alpha <= TRUNCATED,
    ),
}

SMALL = 0.2
"""Points of accuracy; a smaller published difference gets note 8."""

TRUNCATED = 0.3
"""The largest α that has experiments for the authors' fp16 hook."""


def rows(table: int) -> list[Row]:
    """The rows of Table 1, 2 or 3 in the printed order."""
    return [row for row in all_rows() if row.table == table]


@cache
def all_rows() -> tuple[Row, ...]:
    """The rows of all three tables."""
    readme = {tuple(_setting(line).values()): float(line["test_top1"]) for line in reversed(read("authors_readme"))}
    first: dict[tuple[Any, ...], str] = {}
    found = []
    for table in (1, 2, 3):
        for number, line in enumerate(read(f"table{table}"), start=1):
            train, test = float(line["train_top1"]), float(line["test_top1"])
            row = Row(table, number, train_top1=train, test_top1=test, **_setting(line))
            name = first.setdefault(row.setting, _experiment(row))  # rows that share a run have the name of the first
            found.append(replace(row, experiment=name, readme_top1=readme.get(row.setting)))
    return tuple(found)


def _setting(line: Mapping[str, str]) -> dict[str, Any]:
    """The values of `Row.setting` in a line of a CSV, by their names there. Networks without batch norm have a batch of
    256 if it is not stated."""
    alpha = float(line["alpha"] or 1)
    batch = 256 if line["model"].endswith("_nobn") else 1024
    return {
        "model": line["model"],
        "schedule": line["scheduler"],
        "batch": int(line.get("batch_size") or batch),
        "method": line.get("method") or ("baseline" if alpha == 1 else "pgt"),
        "alpha": alpha,
        "label_smoothing": float(line.get("label_smoothing") or 0),
    }


def _experiment(row: Row) -> str:
    """The name of a row's config."""
    names = {
        1: f"{row.model}_{row.schedule}_{row.method}",
        2: f"batch{row.batch}_{row.method.replace('+', '_')}",
        3: f"row{row.number}",
    }
    return f"table{row.table}/{names[row.table]}"


@cache
def amplification_gains() -> dict[str, float]:
    """Data set -> points of test accuracy that gradient amplification gains, by the abstract of arXiv 2305.18445."""
    return {line["data"]: float(line["test_gain"]) for line in read("amplification")}


def baseline(row: Row) -> Row | None:
    """The row that this one is compared with: of its table, the one alike but for the method.

    Label smoothing counts as a method if there is no other, so that PGT with it is compared with it alone.
    """
    if row.method == "baseline" and not row.label_smoothing:
        return None
    smoothing = row.label_smoothing if row.method != "baseline" else 0.0
    wanted = (row.model, row.schedule, row.batch, "baseline", 1.0, smoothing)
    return next(other for other in rows(row.table) if other.setting == wanted)


def difference(row: Row, measure: Literal["train_top1", "test_top1"] = "test_top1") -> float | None:
    """A published accuracy minus its baseline's, points; None for a row that has no baseline."""
    other = baseline(row)
    return getattr(row, measure) - getattr(other, measure) if other else None


def gap(row: Row) -> float:
    """Published training top-1 minus test top-1, points."""
    return row.train_top1 - row.test_top1


def read(name: str) -> list[dict[str, str]]:
    """The lines of one of the CSV files of published numbers, in results/published/."""
    with (repository_folder("results/published") / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))
