"""Figs. 5-7 and 14-17: the norm of every filter by step."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pgt.core.errors import InputError
from pgt.reproduction.figures.style import describe, pyplot, wrapped
from pgt.reproduction.groups import Group, experiment_override, farthest, grouped, read_runs
from pgt.runs.folder import FINISHED, UNFINISHED
from pgt.runs.frame import frame
from pgt.runs.norms import Norms, read_norms

LAST, FEATURES, EVERY = -1, "features", ()
"""The last convolution; the features after the global pooling; all layers."""

TITLE = "Norm of every filter by training step: how many filters are zeroed out?"

NOTE = "A line a filter. Zeroed out: the norm at the end is below 0.001."


FIGURES: dict[int, tuple[tuple[int | str, ...], tuple[str, ...]]] = {
    5: ((11, LAST, FEATURES), ("table1/resnet18_cosine_baseline", "table1/resnet18_cosine_pgt")),
    6: ((5,), ("table2/batch1024_baseline",)),
    7: ((15, 2), ("table2/batch256_baseline", "table2/batch256_pgt", "table2/batch256_agc_pgt")),
    14: (EVERY, ("table2/batch256_baseline",)),
    15: (EVERY, ("table2/batch1024_baseline",)),
    16: (EVERY, ("table2/batch256_pgt",)),
    17: (EVERY, ("table2/batch256_agc_pgt",)),
}
"""Number of the paper's figure -> its layers (a row each, indices from 1) and its experiments (a column each).

Fig. 5 is of a ResNet-18; the paper does not say which, and the one with batch norm is taken.
"""


def filter_norms(root: Path, number: int, experiment: str | None) -> Any:
    """Draw one of `FIGURES`: a line a filter, in a colour of its own; in the title how many are zeroed out at the end.

    Args:
        root: the runs folder.
        number: of the paper's figure.
        experiment: whose runs to show instead: of each setting one that has norms, the finished one of the lowest seed
            if there is one.

    Raises:
        InputError: there is no run, or none that has recorded norms.
    """
    layers, experiments = FIGURES[number]
    if experiment:
        runs = read_runs(root, experiment)
        columns = _columns(root, grouped(runs), experiment_override(runs))
    else:
        groups = [group for name in experiments for group in grouped(farthest(frame(root, name)))]
        columns = _columns(root, groups, f"experiment={','.join(experiments)}")
    if layers == EVERY:
        return _all_layers(*columns[0])
    size = max(5.2, 3.4 * len(columns)), 2.3 * len(layers) + 0.8
    figure, axes = pyplot().subplots(len(layers), len(columns), figsize=size, squeeze=False, sharey="row")
    for column, (title, norms) in enumerate(columns):
        for row, layer in enumerate(layers):
            _panel(axes[row][column], norms, layer)
            if row == 0:
                axes[row][column].set_title(f"{wrapped(title, 42)}\n{axes[row][column].get_title()}")
    describe(figure, TITLE, NOTE)
    return figure


def _columns(root: Path, groups: Iterable[Group], override: str) -> list[tuple[str, Norms]]:
    """Title and norms of the first run of each setting that has them.

    Args:
        override: trains such runs.
    """
    found, again = [], ""
    for group in groups:
        for title, run in group.titled:
            norms = read_norms(run["run"])
            again = again if norms is not None or run["status"] == UNFINISHED else " trainer.force=true"
            if norms is not None and not len(norms.steps) and run["status"] == FINISHED:
                raise InputError(f"{run['run'] / 'norms'} has no record of a finished run: put its norms.bin back")
            if norms is not None and len(norms.steps):
                found.append((f"{title}, on {run['data.name']}", norms))
                break
    if not found:
        command = f"pgt train -m {override} record.norms_every=50{again}"
        anew = " trains those that have ended without them again" if again else ""
        raise InputError(f"no run under {root} has recorded the norms of this figure: `{command}`{anew}")
    return found


def _panel(axis: Any, norms: Norms, layer: int | str) -> None:
    if layer == FEATURES:
        _lines(axis, norms.steps, norms.features)
        axis.set_title("features behind the pooling")
        axis.set_ylabel("RMS of a feature")
    else:
        index = len(norms.layers) if layer == LAST else int(layer)
        if index > len(norms.layers):
            raise InputError(f"this figure shows layer {index}; the network has {len(norms.layers)} convolutions")
        values = norms.filters(index)
        _lines(axis, norms.steps, values)
        gone = norms.zeroed_out()[index]
        axis.set_title(f"layer {index}: {gone} of {values.shape[1]} filters zeroed out")
        axis.set_ylabel("L2 norm of a filter")
    axis.set_xlabel("Step")


def _all_layers(title: str, norms: Norms) -> Any:
    """Every convolution of a network, five in a row."""
    count = len(norms.layers)
    rows = -(-count // 5)
    figure, axes = pyplot().subplots(rows, 5, figsize=(10, 1.8 * rows + 0.8), squeeze=False)
    for index, axis in enumerate(axes.flat[:count], start=1):
        _panel(axis, norms, index)
        axis.title.set_fontsize(7)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    describe(figure, TITLE, f"{title}. {NOTE}")
    for axis in axes[:, 1:].flat:
        axis.set_ylabel("")
    return figure


def _lines(axis: Any, steps: np.ndarray, values: np.ndarray) -> None:
    """A thin line for each column of values [T, filters], drawn as pixels: there are hundreds."""
    import matplotlib
    from matplotlib.collections import LineCollection

    order = np.random.default_rng(0).permutation(values.shape[1])
    colours = matplotlib.colormaps["turbo"](order / max(1, len(order) - 1))
    points = [np.column_stack([steps, column]) for column in values.T]
    lines = axis.add_collection(LineCollection(points, colors=colours, linewidths=0.6, rasterized=True))
    top = values[np.isfinite(values)].max(initial=0)  # a run that diverges has others
    axis.update_datalim([(steps[0], 0), (max(steps[-1], steps[0] + 1), top or 1)])
    lines.sticky_edges.y.append(0)  # no margin below 0
    axis.margins(x=0)
    axis.autoscale_view()
