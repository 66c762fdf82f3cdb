"""The paper's figures from runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pgt.core.errors import InputError
from pgt.reproduction.figures import curves, filters, grid, style, transform

NUMBERS = sorted({2, 4, *filters.FIGURES, *grid.EXPERIMENTS})


def draw(number: int, root: Path, experiment: str | None) -> Any:
    """A figure of the paper.

    Args:
        number: one of `NUMBERS`.
        root: the runs folder.
        experiment: whose runs to show in the place of the paper's; an experiment, or a folder of them.

    Raises:
        InputError: the runs that it needs are not there.
    """
    try:
        if number == 2:
            if experiment is not None:
                raise InputError("figure 2 needs no runs: leave the experiment out")
            return transform.draw()
        if number == 4:
            return curves.draw(root, experiment)
        if number in filters.FIGURES:
            return filters.draw(root, number, experiment)
        show = grid.logits if number == 8 else grid.accuracy
        return show(root, experiment or grid.EXPERIMENTS[number])
    except InputError:
        style.pyplot().close("all")  # what was begun
        raise


def save(number: int, root: Path, experiment: str | None, output: Path) -> list[Path]:
    """Draw a figure into a file, or into `.svg` and `.png` where the name has no ending; returns the files."""
    files = style.files(output)
    style.save(draw(number, root, experiment), files)
    return files
