"""Words for people."""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[object], most: int, last: bool = False) -> str:
    """The first `most` names and `...` for the rest: `a, b, ...`; with `last`, the last name, too."""
    shown = [printable(name) for name in names]
    if len(shown) > most + last:
        shown[most : len(shown) - last] = ["..."]
    return ", ".join(shown)


def printable(name: object) -> str:
    """A name as one printable line of UTF-8; other characters are escaped (`\\n`, `\\udcff`)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
