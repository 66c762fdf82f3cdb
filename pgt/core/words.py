"""Words for people."""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[object], most: int, last: bool = False) -> str:
    """`a, b, c, ...`: the first `most` of the names; for those left out dots, and with `last` the last one."""
    shown = [printable(name) for name in names]
    if len(shown) > most + last:
        shown[most : len(shown) - last] = ["..."]
    return ", ".join(shown)


def printable(name: object) -> str:
    """A name in one line, and in UTF-8, whatever bytes a file is called: what cannot be shown as `\\n`, `\\udcff`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
