"""The paper's figures from runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pgt.core.errors import InputError
from pgt.reproduction.figures import curves, filters, grid, layers, style, sweep, transform

NUMBERS = sorted({2, 4, *filters.FIGURES, *grid.EXPERIMENTS})

Name = int | str
"""One of `NUMBERS`, or one of `NAMES`."""

NAMES = (layers.NAME, sweep.NAME)


def draw(number: Name, root: Path, experiment: str | None, axes: sweep.Axes | None = None) -> Any:
    """Draw a figure of the paper, of gradient amplification, or of any sweep.

    Args:
        number: see `Name`.
        root: the runs folder.
        experiment: an experiment, or a folder of them, whose runs to show instead of the paper's.
        axes: what `sweep` shows over what.

    Raises:
        InputError: there are no runs of it, or the arguments do not go together.
    """
    try:
        if number == sweep.NAME:
            return sweep.over(root, experiment, axes or sweep.Axes())
        if number == layers.NAME:
            return layers.fluctuation(root, experiment or layers.NAME)
        if number == 2:
            if experiment is not None:
                raise InputError("figure 2 needs no runs: leave the experiment out")
            return transform.distributions()
        if number == 4:
            return curves.accuracy_by_epoch(root, experiment)
        number = int(number)
        if number in filters.FIGURES:
            return filters.filter_norms(root, number, experiment)
        show = grid.logits_over_alpha if number == 8 else grid.accuracy_over_alpha
        return show(root, experiment or grid.EXPERIMENTS[number])
    except InputError:
        if "matplotlib.pyplot" in sys.modules:  # it takes a second to import
            style.pyplot().close("all")  # a figure that was begun would stay in memory
        raise


def save(number: Name, root: Path, experiment: str | None, output: Path, axes: sweep.Axes | None = None) -> list[Path]:
    """Draw a figure into a file, or into `.svg` and `.png` if the name has no ending, and return the files."""
    files = style.files(output)
    style.save(draw(number, root, experiment, axes), files)
    return files
