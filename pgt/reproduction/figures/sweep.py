"""A measured value over one or two keys of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pgt.core.errors import InputError
from pgt.reproduction.figures.grid import errorbars
from pgt.reproduction.figures.style import (
    COLOURS,
    MOST_PANELS,
    describe,
    legend_below,
    percent,
    pyplot,
    ticks_at,
    wrapped,
)
from pgt.reproduction.groups import finished, read_runs, varying
from pgt.reproduction.settings import Settings, counted, foremost, number, ordered, settings, source
from pgt.runs.frame import config_names

NAME = "sweep"

VALUES = {
    "test_top1_best": "Test top-1, best epoch (%)",
    "test_top1_final": "Test top-1, last epoch (%)",
    "train_top1": "Training top-1, last epoch (%)",
    "test_loss": "Test loss at z",
    "test_loss_alpha": "Test loss at α·z",
    "test_logit_norm": "Mean 2-norm of the test logits",
    "test_ece": "Calibration error at z (%)",
    "test_ece_alpha": "Calibration error at α·z (%)",
    "images_per_second": "Training speed (images/s)",
}
"""What can be shown: a column of the frame -> the words for it."""


@dataclass(frozen=True)
class Axes:
    """The axes of a figure: swept keys, or `method`, and one of `VALUES` over them. Without y it is a line."""

    x: str = ""
    y: str = ""
    value: str = "test_top1_best"


def over(root: Path, experiment: str | None, axes: Axes) -> Any:
    """Draw a value over a swept key, a line for each setting of the others; or over two, a heat map for each setting of
    the others. Mean ± deviation over seeds.

    Raises:
        InputError: no finished run there, or a key that was not swept.
    """
    if experiment is None:
        raise InputError("name an experiment: `pgt figure sweep demo/bn --x recipe.lr_peak`")
    if axes.value not in VALUES:
        raise InputError(f"{axes.value} cannot be shown: --value takes one of {', '.join(VALUES)}")
    runs = finished(read_runs(root, experiment))
    runs = runs[runs[axes.value].notna()]
    if runs.empty:
        raise InputError(
            f"no finished run under {root / experiment} has {axes.value}: `pgt status` shows what there is"
        )
    names = ["experiment", "method", *config_names(runs)]
    swept = varying(runs, names)
    keys = [axes.x, axes.y] if axes.y else [axes.x]
    for option, key in zip(("--x", "--y"), keys, strict=False):
        if key not in swept:
            wrong = f"{key} was not swept in {experiment}" if key else f"{option} is missing"
            raise InputError(f"{wrong}: {option} takes one of {', '.join(swept) or 'none: all runs are alike'}")
    if axes.x == axes.y:
        raise InputError(f"--x and --y are both {axes.x}: name two keys, or leave --y out")
    if "method.alpha" in keys:
        names.remove("method")  # its name says whether α is 1
    elif "method" not in keys:
        names.insert(2, "alpha")
    most = MOST_PANELS if axes.y else len(COLOURS)
    parts, chosen = foremost(settings(runs, [name for name in names if name not in keys], keys), most)
    figure = _maps(parts, axes) if axes.y else _lines(parts, axes)
    shown = pd.concat(list(parts.values()))
    cells = [cell for part in parts.values() for _, cell in part.groupby([part[key].map(str) for key in keys])]
    what = f"{experiment}: {VALUES[axes.value].partition(' (')[0].lower()} over {' and '.join(keys)}"
    describe(figure, what, f"Mean ± deviation over seeds, {counted(cells)}.", chosen, source(shown))
    return figure


def _lines(parts: Settings, axes: Axes) -> Any:
    figure, axis = pyplot().subplots(figsize=(5.2, 3 + 0.17 * len(parts)))
    values = ordered(axes.x, pd.concat(list(parts.values()))[axes.x])
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    for index, (name, runs) in enumerate(parts.items()):
        places = runs[axes.x].astype(float) if numeric else _places(runs[axes.x], values)
        errorbars(
            axis, runs.assign(place=places), "place", axes.value, name, index, **({} if numeric else {"linestyle": ""})
        )
    if numeric:
        ticks_at(axis, values, wide=True)
    else:
        axis.set_xticks(range(len(values)), map(number, values))
    axis.set(xlabel=axes.x, ylabel=VALUES[axes.value])
    if "top-1" in VALUES[axes.value]:
        percent(axis)
    if len(parts) > 1:
        legend_below(axis)
    return figure


def _maps(parts: Settings, axes: Axes) -> Any:
    """A heat map for each part, all in the same colours."""
    every = pd.concat(list(parts.values()))
    columns, rows = ordered(axes.x, every[axes.x]), ordered(axes.y, every[axes.y])
    across = min(len(parts), 3)
    down = -(-len(parts) // across)
    size = max(4.6, (0.62 * len(columns) + 0.9) * across), (0.42 * len(rows) + 0.9) * down + 0.9
    figure, panels = pyplot().subplots(down, across, figsize=size, squeeze=False)
    for panel in panels.flat[len(parts) :]:
        panel.set_visible(False)
    cells = {name: _cells(runs, axes, columns, rows) for name, runs in parts.items()}
    low, high = (end([found["mean"].agg(end) for found in cells.values()]) for end in (min, max))
    for panel, (name, found) in zip(panels.flat, cells.items(), strict=False):
        picture = np.full((len(rows), len(columns)), np.nan)
        for (row, column), mean, deviation in found.itertuples():
            picture[row, column] = mean
            text = f"{mean:.4g}" if np.isnan(deviation) else f"{mean:.4g}\n±{deviation:.2g}"
            colour = "black" if mean - low > 0.6 * (high - low) else "white"
            panel.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
        image = panel.imshow(picture, aspect="auto", cmap="viridis", origin="lower", vmin=low, vmax=high)
        panel.set_xticks(range(len(columns)), map(number, columns))
        panel.set_yticks(range(len(rows)), map(number, rows))
        panel.set(xlabel=axes.x, ylabel=axes.y, title=wrapped(name, 40))
        panel.grid(False)
    figure.colorbar(image, ax=panels, label=VALUES[axes.value])
    return figure


def _cells(runs: pd.DataFrame, axes: Axes, columns: Sequence[Any], rows: Sequence[Any]) -> pd.DataFrame:
    """Mean and deviation of the runs of each cell, by (row, column)."""
    places = [_places(runs[axes.y], rows), _places(runs[axes.x], columns)]
    return runs.groupby(places)[axes.value].agg(["mean", "std"])


def _places(column: pd.Series[Any], values: Sequence[Any]) -> pd.Series[int]:
    """The place of each value of a column among `values`."""
    return column.map(str).map({str(value): place for place, value in enumerate(values)})
