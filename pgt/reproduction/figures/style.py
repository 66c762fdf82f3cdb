"""The colours, axes and files of all figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgt.core.errors import InputError

COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999")
"""Okabe and Ito's palette, which the colour-blind can tell apart, with grey in the place of its yellow."""

LINES = ("-", "--", ":", "-.")
"""Lines that can be told apart in print."""

ENDINGS = (".png", ".svg", ".pdf")


def files(output: Path) -> list[Path]:
    """The pictures that a name asks for: itself, or both PNG and SVG if it has no ending.

    Raises:
        InputError: the ending is not one of a format that can be written.
    """
    if not output.suffix:
        return [output.with_suffix(".svg"), output.with_suffix(".png")]
    if output.suffix not in ENDINGS:
        raise InputError(f"cannot draw {output}: end the name in one of {', '.join(ENDINGS)}")
    return [output]


def pyplot() -> Any:
    """matplotlib's pyplot, set up to draw into files."""
    os.environ["MPLBACKEND"] = "agg"  # matplotlib cannot even be imported with the name of a backend that it lacks
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "pgt"  # the same picture is the same file
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, outputs: Sequence[Path]) -> None:
    """Write a figure to every file, and close it."""
    for output in outputs:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=150, metadata={"Date": None} if output.suffix == ".svg" else None)
    pyplot().close(figure)


def shades(count: int) -> list[Any]:
    """Colours from dark to light that stay in order in greyscale."""
    import matplotlib

    return [matplotlib.colormaps["viridis"](index / count) for index in range(count)]


def style(index: int) -> dict[str, str]:
    """Colour and line of the index-th of several curves."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}


def logarithmic(axis: Any, horizontal: bool = True) -> None:
    """Make the vertical axis, and if asked the horizontal one, logarithmic, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_yscale("log")
    if horizontal:
        axis.set_xscale("log")
    for direction in (axis.xaxis, axis.yaxis) if horizontal else (axis.yaxis,):
        direction.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        direction.set_major_formatter(StrMethodFormatter("{x:g}"))
        direction.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", alpha=0.3)
