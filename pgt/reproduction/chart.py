"""Curves of accuracy by epoch for the report: SVG polylines, with the values that the page shows on hover."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 210
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 8, 22
"""The size of a chart and its margins, in units of its view box."""

Value = tuple[int, float, float | None]
"""Epoch (from 1), percent, and the deviation over seeds; None for a single run."""


@dataclass(frozen=True)
class Line:
    """A curve: its label, its polyline's points, and its values as JSON, which the page shows on hover."""

    label: str
    points: str
    values: str


@dataclass(frozen=True)
class Chart:
    """Curves on common axes.

    Attributes:
        rows: (position, percent) of each horizontal grid line.
        columns: (position, epoch) of each label below.
    """

    lines: Sequence[Line]
    rows: Sequence[tuple[float, int]]
    columns: Sequence[tuple[float, int]]


def chart(curves: Mapping[str, Iterable[Value]]) -> Chart | None:
    """Put curves on an axis of percent that ends at 100, and one of epochs; None if there is nothing to draw.

    Args:
        curves: label -> values by rising epoch.
    """
    drawn = {label: found for label, values in curves.items() if (found := list(values))}
    if not drawn:
        return None
    least = min(value for values in drawn.values() for _, value, _ in values)
    low = 10 * math.floor(min(least, 90) / 10)
    first, last = 1, max(values[-1][0] for values in drawn.values())

    def place(epoch: int, value: float) -> tuple[float, float]:
        across = (epoch - first) / max(last - first, 1)
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * across,
            TOP + (HEIGHT - TOP - BOTTOM) * (100 - value) / (100 - low),
        )

    def line(label: str, values: Sequence[Value]) -> Line:
        places = [place(epoch, value) for epoch, value, _ in values]
        if len(places) == 1:  # a dash, since a line through one point would not be seen
            places = [(across, up) for across, up in places for across in (across - 4, across + 4)]
        points = " ".join("{:.1f},{:.1f}".format(*point) for point in places)
        told = [
            (round(place(epoch, value)[0], 1), epoch, round(value, 2), deviation and round(deviation, 2))
            for epoch, value, deviation in values
        ]
        return Line(label, points, json.dumps(told))

    marks = sorted({low, (low + 100) // 2, 100})
    epochs = sorted({first, (first + last) // 2, last})
    return Chart(
        [line(label, values) for label, values in drawn.items()],
        [(place(first, mark)[1], mark) for mark in marks],
        [(place(epoch, 100)[0], epoch) for epoch in epochs],
    )
