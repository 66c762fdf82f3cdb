"""Words for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby


def some(names: Sequence[object], most: int, last: bool = False) -> str:
    """The first `most` names and `...` for the rest: `a, b, ...`; with `last`, the last name, too."""
    shown = [printable(name) for name in names]
    if len(shown) > most + last:
        shown[most : len(shown) - last] = ["..."]
    return ", ".join(shown)


def printable(name: object) -> str:
    """A name as one printable line of UTF-8; other characters are escaped (`\\n`, `\\udcff`)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 run`, `2 runs`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in ascending order, three or more in a row as a range: `0–2, 5`."""
    found: list[str] = []
    for _, members in groupby(enumerate(sorted(set(numbers))), key=lambda item: item[1] - item[0]):
        row = [number for _, number in members]
        found += [f"{row[0]}–{row[-1]}"] if len(row) > 2 else map(str, row)
    return ", ".join(found)
