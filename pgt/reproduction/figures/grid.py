"""Figs. 8 and 10-12: accuracy, logits and loss over α."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pgt.core.errors import InputError
from pgt.reproduction.figures.style import logarithmic, pyplot, style
from pgt.reproduction.groups import data_of, joined, overrides, read_groups, varying
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

Series = Mapping[str, pd.DataFrame]
"""Setting -> its finished runs, by rising α."""


def read_series(root: Path, experiment: str) -> Series:
    """The finished runs with PGT or no method, in series that differ in α and seed alone.

    Raises:
        InputError: no setting has two α.
    """
    groups = [group.finished for group in read_groups(root, experiment) if group.method in ("baseline", "pgt")]
    runs = pd.concat(groups) if groups else pd.DataFrame(columns=["alpha", "experiment"])
    told = varying(runs, [name for name in config_names(runs) if name != "method.alpha"])
    texts = [overrides(values) for values in runs[told].to_dict("records")]
    names = [joined(name, text) for name, text in zip(runs.experiment, texts, strict=True)]
    series = {
        str(name): members.sort_values("alpha", kind="stable")
        for name, members in runs.groupby(np.array(names), sort=False)
    }
    if all(members.alpha.nunique() < 2 for members in series.values()):
        command = f"pgt train -m experiment={experiment} method=pgt method.alpha=1,0.5,0.25"
        raise InputError(f"there are not two α of one setting under {root / experiment}: `{command}`, say")
    return series


def accuracy_over_alpha(root: Path, experiment: str) -> Any:
    """Draw training and test top-1 over α, mean ± deviation over seeds (Figs. 10-12)."""
    series = read_series(root, experiment)
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, metric, label in zip(
        axes, ("train_top1", "test_top1_best"), ("Training top-1 (%)", "Test top-1, best epoch (%)"), strict=True
    ):
        for index, (name, runs) in enumerate(series.items()):
            _bars(axis, runs, metric, f"{name} ({_seeds(runs)})", index)
            baseline = runs[runs.alpha == 1]
            if not baseline.empty:
                axis.axhline(baseline[metric].mean(), color=style(index)["color"], linewidth=0.8, linestyle=":")
        axis.set(ylabel=label)
        _alphas(axis, series)
        axis.grid(True, alpha=0.3)
        axis.legend(frameon=False, fontsize="small")
    figure.suptitle(f"Mean ± deviation over seeds; dotted: α = 1, the baseline. {_data(series)}", fontsize="medium")
    return figure


def logits_over_alpha(root: Path, experiment: str) -> Any:
    """Draw logit norm over α; loss at z and at α·z over α; loss over logit norm with its regression line (Fig. 8)."""
    measured = {name: runs.dropna(subset="test_logit_norm") for name, runs in read_series(root, experiment).items()}
    series = {name: runs for name, runs in measured.items() if not runs.empty}
    if not series:
        raise InputError(f"no run under {root / experiment} has measured its logits: draw figure 10, which needs none")
    figure, (left, middle, right) = pyplot().subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for index, (name, runs) in enumerate(series.items()):
        of = f", {name}" if len(series) > 1 else ""
        _bars(left, runs, "test_logit_norm", f"{name} ({_seeds(runs)})", index)
        _bars(middle, runs, "test_loss", f"at z{of}", 2 * index)
        _bars(middle, runs, "test_loss_alpha", f"at α·z, calibrated{of}", 2 * index + 1)
        _scatter(right, runs, index)
    if experiment in EXPERIMENTS.values():  # on other data it is another line
        slope, intercept = PAPER_LINE
        right.axline((0, intercept), slope=slope, linestyle="--", color="grey", label=f"paper: {slope} x + {intercept}")
    left.set(ylabel="Mean 2-norm of the logits, test set")
    middle.set(ylabel="Test loss")
    for axis in (left, middle):
        logarithmic(axis, horizontal=False)
        _alphas(axis, series)
    right.set(xlabel="Logit norm", ylabel="Test loss at z", title="A point a run; line of least squares")
    right.grid(True, alpha=0.3)
    for axis in (left, middle, right):
        axis.legend(frameon=False, fontsize="small")
    figure.suptitle(f"Left and middle: mean ± deviation over seeds. {_data(series)}", fontsize="medium")
    return figure


def _data(series: Series) -> str:
    return f"Data: {data_of(pd.concat(list(series.values())))}"


def _alphas(axis: Any, series: Series) -> None:
    """Set a tick at each value of α, with its number if there is room."""
    values = sorted({alpha for runs in series.values() for alpha in runs.alpha})
    room, labels, last = 0.08 * (values[-1] - values[0]), [], -math.inf
    for value in values:
        labels.append(f"{value:g}" if value - last > room else "")
        last = value if labels[-1] else last
    axis.set(xlabel="α", xticks=values, xticklabels=labels)


def _bars(axis: Any, runs: pd.DataFrame, metric: str, label: str, index: int) -> None:
    found = runs.groupby("alpha")[metric].agg(["mean", "std"]).fillna(0)  # one seed has no deviation
    look = {"marker": "osD^v"[index % 5], "markersize": 4, "capsize": 3, **style(index)}
    axis.errorbar(found.index, found["mean"], found["std"], label=label, **look)


def _scatter(axis: Any, runs: pd.DataFrame, index: int) -> None:
    """Plot a point for each run, and the line of least squares."""
    norms, losses = runs.test_logit_norm.to_numpy(), runs.test_loss.to_numpy()
    axis.plot(norms, losses, "o", color=style(index)["color"], markersize=4)
    if runs.alpha.nunique() < 2:
        return
    ends = np.array([norms.min(), norms.max()])
    slope, intercept = np.polyfit(norms, losses, 1)
    fit = f"{slope:.5f} x {'+' if intercept >= 0 else '−'} {abs(intercept):.5f}"
    r2 = np.corrcoef(norms, losses)[0, 1] ** 2
    axis.plot(ends, slope * ends + intercept, label=f"{fit} ({len(norms)} runs, R² = {r2:.2f})", **style(index))


def _seeds(runs: pd.DataFrame) -> str:
    counts = runs.groupby("alpha").size()
    return f"n = {counts.min()}" if counts.nunique() == 1 else f"n = {counts.min()} to {counts.max()}"
