"""Words for people."""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[object], most: int, last: bool = False) -> str:
    """`a, b, c, ...`: the first `most` of the names; for those left out dots, and with `last` the last one."""
    shown = [str(name) for name in names]
    if len(shown) > most + last:
        shown[most : len(shown) - last] = ["..."]
    return ", ".join(shown)
