"""The colours, words, axes and files of all figures."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pgt.core.errors import InputError

COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999")
"""Okabe and Ito's palette, which the colour-blind can tell apart, with grey in the place of its yellow."""

LINES = ("-", "--", ":", "-.")
"""Lines that can be told apart in print."""

ENDINGS = (".png", ".svg", ".pdf")

LOOK: dict[Any, Any] = {
    "axes.grid": True,
    "axes.grid.which": "major",
    "axes.labelsize": 8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8.5,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 10,
    "figure.titleweight": "bold",
    "font.size": 8,
    "grid.alpha": 0.3,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "svg.hashsalt": "pgt",  # the same picture is the same file
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}
"""Matplotlib's settings: text of 7.5 points and more on pictures of about 7 inches, the width of a page's text."""

MOST_LINES, MOST_PANELS = 16, 6
"""The most lines of a panel that an eye can follow, and the most panels that stand beside each other."""


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
    """matplotlib's pyplot, set up to draw into files in our `LOOK`."""
    os.environ["MPLBACKEND"] = "agg"  # matplotlib cannot even be imported with the name of a backend that it lacks
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update(LOOK)
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, outputs: Sequence[Path]) -> None:
    """Write a figure to every file, and close it."""
    for output in outputs:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=200, metadata={"Date": None} if output.suffix == ".svg" else None)
    pyplot().close(figure)


def style(index: int) -> dict[str, str]:
    """Colour and line of the index-th of several curves."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}


def describe(figure: Any, title: str, *notes: str) -> None:
    """Write a title above a figure, and notes on what is drawn below it, in lines as long as the figure is wide."""
    width = figure.get_size_inches()[0]
    figure.suptitle(wrapped(title, int(11.5 * width)))
    figure.supxlabel(wrapped(" ".join(filter(None, notes)), int(17 * width)), fontsize=7, color="#444444")


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width` characters, broken at spaces alone."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def legend_below(axis: Any, handles: Sequence[Any] | None = None) -> None:
    """Put a legend below a panel and the label of its axis: of the panel itself, or of those handles."""
    from matplotlib.transforms import ScaledTranslation

    below = axis.transAxes + ScaledTranslation(0, -0.42, axis.figure.dpi_scale_trans)  # inches
    handles = axis.get_legend_handles_labels()[0] if handles is None else handles  # without any, legend would warn
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, borderaxespad=0)


def percent(axis: Any) -> None:
    """End a vertical axis of accuracies at 100 if the data then still fill half of it; otherwise leave its end."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(0.0, low), 100 if 100 - high <= high - low else high)


def ticks_at(axis: Any, values: Iterable[float], wide: bool = False) -> None:
    """Set a tick of the horizontal axis at each value, with its number if there is room.

    Args:
        wide: make the axis logarithmic if it has three positive values or more that reach over a power of ten.
    """
    import numpy as np
    from matplotlib.ticker import NullLocator

    found = sorted(set(values))
    wide = wide and len(found) > 2 and 0 < 10 * found[0] <= found[-1]
    axis.set_xscale("log" if wide else "linear")
    places = np.log(found) if wide else np.array(found, dtype=float)
    room, labels, last = 0.1 * (places[-1] - places[0]), [], -np.inf
    for value, place in zip(found, places, strict=True):
        free = place - last > room and (place == places[-1] or places[-1] - place > room)
        labels.append(f"{value:g}" if free else "")
        last = place if free else last
    axis.set_xticks(found, labels)
    axis.xaxis.set_minor_locator(NullLocator())


def logarithmic(axis: Any) -> None:
    """Make the vertical axis logarithmic, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
