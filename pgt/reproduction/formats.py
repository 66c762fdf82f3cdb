"""One table, four ways to print it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from pgt.core.errors import InputError
from pgt.reproduction.statistics import Sample

FORMATS = ("terminal", "markdown", "csv", "latex")

ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".txt": "terminal"}

LATEX = str.maketrans(
    {
        "α": r"$\alpha$",
        "ε": r"$\varepsilon$",
        "±": r"$\pm$",
        "−": "$-$",
        "≥": r"$\ge$",
        "×": r"$\times$",
        "′": "$'$",
        "σ": r"$\sigma$",
        "–": "--",
        "·": r"$\cdot$",
    }
)
"""Letters that LaTeX needs a command for."""

LATEX_NEEDS = r"Needs \usepackage{booktabs}. Put it into a table environment with a caption of your own."

T = TypeVar("T")
Column: TypeAlias = tuple[str, Callable[[T], str]]
"""The header of a column, and a function from the thing that a line is about to its cell."""


@dataclass(frozen=True)
class Note:
    """A note below a table: a paragraph, a list, or a paragraph with a list below it."""

    text: str = ""
    items: Sequence[str] = ()

    def __str__(self) -> str:
        return "\n".join([*filter(None, [self.text]), *(f"- {item}" for item in self.items)])


@dataclass(frozen=True)
class Table:
    """Headers, cells and the notes below them.

    Attributes:
        title: stands above the table; empty for none.
        rows: each has as many cells as there are headers.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[Note] = ()


def table(things: Iterable[T], columns: Sequence[Column[T]], title: str = "", notes: Sequence[Note] = ()) -> Table:
    """A table with a line for each thing."""
    rows = [[cell(thing) for _, cell in columns] for thing in things]
    return Table(title, [header for header, _ in columns], rows, notes)


def format_of(path: Path) -> str:
    """The format that a file's ending asks for.

    Raises:
        InputError: the ending is none of `ENDINGS`.
    """
    if path.suffix not in ENDINGS:
        raise InputError(f"cannot write a table to {path}: end the name in one of {', '.join(ENDINGS)}")
    return ENDINGS[path.suffix]


def render(tables: Sequence[Table], form: str) -> str:
    """Tables one under the other in one of `FORMATS`. CSV has no titles and no notes: it is data. LaTeX has them as
    comments, so that the file holds the tabular alone."""
    if form == "csv":
        return "\n".join(_csv(table) for table in tables)
    return "\n\n".join(_render(table, form) for table in tables)


def _render(table: Table, form: str) -> str:
    from tabulate import tabulate

    styles = {"terminal": "simple", "markdown": "github", "latex": "latex_booktabs"}
    rows = [[cell.replace("|", r"\|") for cell in row] for row in table.rows] if form == "markdown" else table.rows
    body = tabulate(rows, table.headers, tablefmt=styles[form], disable_numparse=True)
    if form == "latex":
        notes = "\n".join(map(str, [table.title, LATEX_NEEDS, *table.notes])).strip()
        return "\n".join([*(f"% {line}" for line in notes.splitlines()), body.translate(LATEX)])
    title = [f"## {table.title}" if form == "markdown" else table.title] if table.title else []
    return "\n\n".join([*title, body, *map(str, table.notes)])


def data_table(rows: Sequence[Mapping[str, object]]) -> Table:
    """Rows of data as a table; a value that is not known, or is no number, is an empty cell."""
    cells = [["" if value is None or value != value else str(value) for value in row.values()] for row in rows]
    return Table("", list(rows[0]) if rows else [], cells)


def sample_data(name: str, value: Sample | None) -> dict[str, object]:
    """Mean and deviation as two columns of data."""
    return {name: value and value.mean, f"{name}_deviation": value and value.deviation}


def _csv(table: Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.headers)
    writer.writerows(table.rows)
    return buffer.getvalue()
