"""Gradient amplification: the fluctuation of every layer by epoch, and when it was amplified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgt.core.errors import InputError
from pgt.core.types import Record
from pgt.reproduction.figures.style import describe, pyplot, wrapped
from pgt.reproduction.groups import read_groups
from pgt.runs.folder import read_epochs

NAME = "amplification"
"""The name of the figure, and of the experiments that it shows."""

FLUCTUATION, FACTOR = "fluctuation/", "amplification/"
"""The keys of an epoch's record, before the name of a layer: F, and the factor in that epoch."""


def fluctuation(root: Path, experiment: str = NAME) -> Any:
    """Draw layers × epochs of a run of each setting: the colour is F, a dot marks an epoch with amplification.

    Args:
        root: the runs folder.
        experiment: an experiment or a folder of them. Of each setting it shows one run that has such records: the
            finished one of the lowest seed, if there is one.

    Raises:
        InputError: no run has recorded fluctuations.
    """
    panels: list[tuple[str, Sequence[Record]]] = []
    for group in read_groups(root, experiment):
        for title, run in group.titled:
            records = read_epochs(run["run"], run["epochs"])
            if records and any(key.startswith(FLUCTUATION) for key in records[0]):
                panels.append((title, records))
                break
    if not panels:
        raise InputError(f"no run under {root / experiment} has amplified: `pgt train experiment=... method={NAME}`")
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    layers = max(len(_values(epochs, FLUCTUATION)[0]) for _, epochs in panels)
    figure, axes = pyplot().subplots(
        down, across, figsize=(max(5.2, 4.2 * across), (0.9 + 0.15 * layers) * down + 0.5), squeeze=False
    )
    for axis, (title, epochs) in zip(axes.flat, panels, strict=False):
        _panel(figure, axis, epochs)
        axis.set_title(wrapped(title, 48))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    describe(
        figure,
        "Fluctuation of each layer's gradient by epoch, and which layers are amplified",
        "F = 0: all steps of an epoch pull the same way; F = 1: they cancel. Dot: the layer is amplified then.",
        "One run of each setting.",
    )
    return figure


def _panel(figure: Any, axis: Any, epochs: Sequence[Record]) -> None:
    names, values = _values(epochs, FLUCTUATION)
    first = epochs[0]["epoch"] + 1
    end = first + len(epochs)
    image = axis.imshow(
        values, aspect="auto", interpolation="nearest", cmap="viridis", extent=(first - 0.5, end - 0.5, len(names), 0)
    )
    figure.colorbar(image, ax=axis, label="Fluctuation F (0 to 1)")
    layer, epoch = np.nonzero(_values(epochs, FACTOR)[1] != 1)
    axis.scatter(epoch + first, layer + 0.5, s=11, color="#D55E00", edgecolors="white", linewidths=0.4)
    axis.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=6)
    axis.grid(False)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("Epoch")


def _values(epochs: Sequence[Record], prefix: str) -> tuple[list[str], Any]:
    """The layers' names, and an array [layers, epochs] of what the records say of them under keys of that prefix."""
    keys = [key for key in epochs[0] if key.startswith(prefix)]
    return [key.removeprefix(prefix) for key in keys], np.array([[record[key] for record in epochs] for key in keys])
