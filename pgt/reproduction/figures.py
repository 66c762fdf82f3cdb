"""The paper's figures from runs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from pgt.errors import InputError
from pgt.reproduction.groups import read_groups
from pgt.runs import read_epochs

COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999")
"""Okabe and Ito's palette, told apart by the colour-blind; grey in the place of its yellow."""

FORMATS = (".png", ".svg", ".pdf")

METRICS = {"train_top1": "Training top-1 error (%)", "test_top1": "Test top-1 error (%)"}


ALPHAS = (1.0, 0.75, 0.5, 0.25, 0.05, 0.0)


def power_transform(output: Path) -> None:
    """A distribution over ten classes and its power transforms, unordered and ordered (Fig. 2).

    Args:
        output: the picture; its ending says which format.

    Raises:
        InputError: a format that cannot be written.
    """
    import numpy as np

    pyplot = _pyplot(output)
    logits = np.array([0.3, 1.9, -0.8, 1.1, 0.0, 2.6, -0.2, 1.5, -1.2, 0.7])
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    shades = _shades(len(ALPHAS))
    for alpha, shade in zip(ALPHAS, shades, strict=True):
        powers = np.exp(alpha * logits)
        p = powers / powers.sum()
        for axis, values in zip(axes, (p, np.sort(p)[::-1]), strict=True):
            axis.plot(range(1, len(p) + 1), values, "o-", color=shade, markersize=4, label=f"α = {alpha:g}")
    for axis, title, label in zip(axes, ("By class", "In descending order"), ("Class", "Rank"), strict=True):
        axis.axhline(1 / len(logits), color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel=label, xticks=range(1, len(logits) + 1))
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel(r"$p' = p^\alpha / \Sigma\, p^\alpha$")
    axes[1].legend(frameon=False)
    _save(figure, output)


def _shades(count: int) -> list[Any]:
    """Colours from dark to light that stay in order in greyscale."""
    import matplotlib

    return [matplotlib.colormaps["viridis"](index / count) for index in range(count)]


def accuracy_curves(root: Path, experiment: str, output: Path) -> None:
    """Training and test error by epoch, one column an experiment, both axes logarithmic (Fig. 4 a, b).

    One line a setting: the mean over the seeds of its finished runs; the band reaches from the least to the greatest.

    Args:
        root: the runs folder.
        experiment: one, or a folder of them.
        output: the picture; its ending says which format.

    Raises:
        InputError: no finished run there, a damaged one, or a format that cannot be written.
    """
    pyplot = _pyplot(output)
    curves = _read(root, experiment)
    figure, axes = pyplot.subplots(
        len(METRICS), len(curves), figsize=(5.5 * len(curves), 7), squeeze=False, layout="constrained"
    )
    for column, (name, groups) in enumerate(curves.items()):
        for row, (metric, label) in enumerate(METRICS.items()):
            _draw(axes[row][column], groups, metric)
            axes[row][column].set(title=name if row == 0 else "", xlabel="Epoch", ylabel=label)
    _save(figure, output)


def _pyplot(output: Path) -> Any:
    """matplotlib's pyplot for files, once it is known that `output` can be written."""
    if output.suffix not in FORMATS:
        raise InputError(f"cannot draw {output}: end the name in one of {', '.join(FORMATS)}")
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "pgt"  # the same picture is the same file
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, output: Path) -> None:
    from matplotlib import pyplot

    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150, metadata={"Date": None} if output.suffix == ".svg" else None)
    pyplot.close(figure)


Curves = dict[str, list[list[dict[str, Any]]]]
"""Of one experiment: label of a setting -> the epoch records of each of its runs."""


def _read(root: Path, experiment: str) -> dict[str, Curves]:
    """Finished runs by experiment and setting."""
    found: dict[str, Curves] = defaultdict(dict)
    for group in read_groups(root, experiment):
        if group.finished:
            label = f"{group.label} (n={len(group.finished)})"
            found[group.experiment][label] = [read_epochs(folder, summary) for folder, summary in group.finished]
    if not found:
        raise InputError(f"no finished runs under {root / experiment}: `pgt table {experiment}` shows what there is")
    return found


def _draw(axis: Any, groups: Curves, metric: str) -> None:
    """Error of every setting over the epochs; an error of 0 is drawn at the axis' foot."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    groups = {  # not every epoch is evaluated
        label: [[record for record in run if metric in record] for run in runs] for label, runs in groups.items()
    }
    positive = [100 - e[metric] for runs in groups.values() for run in runs for e in run if e[metric] < 100]
    foot = min(positive, default=1.0) / 2
    for index, (label, runs) in enumerate(groups.items()):
        colour, line = COLOURS[index % len(COLOURS)], ("-", "--", ":")[index // len(COLOURS) % 3]
        errors = [[max(100 - e[metric], foot) for e in epochs] for epochs in zip(*runs, strict=True)]
        epochs = [record["epoch"] + 1 for record in runs[0]]
        axis.plot(epochs, [fmean(e) for e in errors], line, color=colour, label=label)
        axis.fill_between(epochs, [min(e) for e in errors], [max(e) for e in errors], color=colour, alpha=0.12)
    axis.set(xscale="log", yscale="log", ylim=(foot, 100))
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        direction.set_major_formatter(StrMethodFormatter("{x:g}"))
        direction.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
