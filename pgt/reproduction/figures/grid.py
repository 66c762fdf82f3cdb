"""Figs. 8 and 10-12: accuracy, logits and loss over α."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pgt.core.errors import InputError
from pgt.reproduction.figures.style import (
    COLOURS,
    describe,
    legend_below,
    logarithmic,
    percent,
    pyplot,
    style,
    ticks_at,
)
from pgt.reproduction.groups import experiment_override, finished, read_runs
from pgt.reproduction.settings import Settings, counted, foremost, settings, source
from pgt.runs.frame import config_names

EXPERIMENTS = {
    8: "grid/alpha_resnet18",
    10: "grid/alpha_resnet18",
    11: "grid/alpha_resnet50",
    12: "grid/alpha_resnet20_cifar10",
}
"""Number of the figure -> the experiment that it shows."""

PAPER_LINE = 0.01074, 0.25816
"""Slope and intercept of Fig. 8(c): loss over logit norm, of a network that the paper does not name."""


def read_series(root: Path, experiment: str) -> Settings:
    """The finished runs with PGT or no method, in series that differ in α and seed alone.

    Raises:
        InputError: no setting has two α.
    """
    found = read_runs(root, experiment)
    runs = finished(found[found.method.isin(["baseline", "pgt"])]).sort_values("alpha", kind="stable")
    names = ["experiment", *(name for name in config_names(runs) if name != "method.alpha")]
    series = settings(runs, names)
    if all(line.alpha.nunique() < 2 for line in series.values()):
        command = f"pgt train -m {experiment_override(found)} method=pgt method.alpha=1,0.5,0.25"
        raise InputError(f"there are not two α of one setting under {root / experiment}: `{command}`, say")
    return series


def accuracy_over_alpha(root: Path, experiment: str) -> Any:
    """Draw training and test top-1 over α, mean ± deviation over seeds (Figs. 10-12)."""
    series, chosen = foremost(read_series(root, experiment), len(COLOURS))
    shown = pd.concat(list(series.values()))
    figure, axes = pyplot().subplots(1, 2, figsize=(6.8, 3.2 + 0.09 * len(series)))
    metrics = {"train_top1": "Training top-1, last epoch (%)", "test_top1_best": "Test top-1, best epoch (%)"}
    for axis, (metric, label) in zip(axes, metrics.items(), strict=True):
        for index, (name, runs) in enumerate(series.items()):
            errorbars(axis, runs, "alpha", metric, name, index)
            baseline = runs[runs.alpha == 1]
            if not baseline.empty:
                axis.axhline(baseline[metric].mean(), color=style(index)["color"], linewidth=0.8, linestyle=":")
        axis.set(xlabel="α", ylabel=label)
        ticks_at(axis, shown.alpha)
        percent(axis)
    if len(series) > 1:
        handles = axes[0].get_legend_handles_labels()[0]
        half = -(-len(handles) // 2)
        legend_below(axes[0], handles[:half])
        legend_below(axes[1], handles[half:])
    describe(
        figure,
        f"{experiment}: how accuracy depends on α",
        f"Mean ± deviation over seeds, {_counted(series)}. Dotted: the baseline of the same setting.",
        chosen,
        source(shown),
    )
    return figure


def logits_over_alpha(root: Path, experiment: str) -> Any:
    """Draw logit norm over α; loss at z and at α·z over α; loss over logit norm with its regression line (Fig. 8)."""
    measured = {name: runs.dropna(subset="test_logit_norm") for name, runs in read_series(root, experiment).items()}
    series, chosen = foremost({name: runs for name, runs in measured.items() if not runs.empty}, len(COLOURS))
    if not series:
        raise InputError(f"no run under {root / experiment} has measured its logits: draw figure 10, which needs none")
    shown = pd.concat(list(series.values()))
    figure, axes = pyplot().subplots(1, 3, figsize=(7.4, 3.2 + 0.17 * max(2, len(series))))
    left, middle, right = axes
    for index, (name, runs) in enumerate(series.items()):
        errorbars(left, runs, "alpha", "test_logit_norm", name, index)
        errorbars(middle, runs, "alpha", "test_loss", "", index)
        errorbars(middle, runs, "alpha", "test_loss_alpha", "", index, linestyle="--", markerfacecolor="white")
        _scatter(right, runs, index)
    for label, look in (("at z", {}), ("at α·z, calibrated", {"linestyle": "--", "markerfacecolor": "white"})):
        middle.plot([], [], color="grey", marker="o", markersize=3.5, label=label, **look)
    if set(shown["data.name"]) == {"imagenet"}:  # the paper does not name the network; on other data it is another line
        slope, intercept = PAPER_LINE
        right.axline((0, intercept), slope=slope, linestyle="--", color="grey", label=f"paper: {slope} x + {intercept}")
    left.set(xlabel="α", ylabel="Mean 2-norm of the logits", title="Size of the logits")
    middle.set(xlabel="α", ylabel="Test loss", title="Loss, and that of calibrated logits")
    right.set(xlabel="Mean 2-norm of the logits", ylabel="Test loss at z", title="Loss over size: a point a run")
    for axis in (left, middle):
        logarithmic(axis)
        ticks_at(axis, shown.alpha)
    for axis in (left, middle, right) if len(series) > 1 else (middle, right):
        legend_below(axis)
    describe(
        figure,
        f"{experiment}: how the size of the logits and the loss depend on α",
        f"Left and middle: mean ± deviation over seeds, {_counted(series)}.",
        chosen,
        source(shown),
    )
    return figure


def errorbars(axis: Any, runs: pd.DataFrame, x: str, metric: str, label: str, index: int, **look: str) -> None:
    """Plot the mean of a metric over a column, with its deviation over runs as bars."""
    found = runs.groupby(x)[metric].agg(["mean", "std"]).fillna({"std": 0})  # one seed has no deviation
    shape = {
        "marker": "osD^v<>p"[index % 8],
        "markersize": 3.5,
        "capsize": 2,
        "elinewidth": 0.8,
        **style(index),
        **look,
    }
    axis.errorbar(found.index, found["mean"], found["std"], label=label, **shape)


def _counted(series: Settings) -> str:
    return counted(runs for line in series.values() for _, runs in line.groupby("alpha"))


def _scatter(axis: Any, runs: pd.DataFrame, index: int) -> None:
    """Plot a point for each run, and a line of least squares if there are three α: two are on a line in any case."""
    points = runs[["test_logit_norm", "test_loss", "alpha"]].to_numpy(float)
    norms, losses, alphas = points[np.isfinite(points).all(axis=1)].T
    axis.plot(norms, losses, "o", color=style(index)["color"], markersize=3)
    if len(set(alphas)) < 3 or len(set(norms)) < 2 or len(set(losses)) < 2:  # a constant has no R²
        return
    ends = np.array([norms.min(), norms.max()])
    slope, intercept = np.polyfit(norms, losses, 1)
    fit = f"{slope:.4f} x {'+' if intercept >= 0 else '−'} {abs(intercept):.3f}"
    r2 = np.corrcoef(norms, losses)[0, 1] ** 2
    axis.plot(ends, slope * ends + intercept, label=f"{fit} (R² = {r2:.2f})", **style(index))
