"""Figs. 8 and 10-12: what α does to accuracy, logits and loss."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pgt.core.errors import InputError
from pgt.reproduction.figures.style import logarithmic, pyplot, style
from pgt.reproduction.groups import Group, data_of, flat, read_groups, setting_of
from pgt.reproduction.statistics import sample

EXPERIMENTS = {
    8: "grid/alpha_resnet18",
    10: "grid/alpha_resnet18",
    11: "grid/alpha_resnet50",
    12: "grid/alpha_resnet20_cifar10",
}
"""The paper's figure -> the runs that it is of."""

PAPER_LINE = 0.01074, 0.25816
"""Slope and intercept of Fig. 8(c): loss over logit norm, of a network that the paper does not name."""

Series = Mapping[str, Sequence[Group]]
"""Setting -> its groups by rising α."""


def read_series(root: Path, experiment: str) -> Series:
    """The finished groups with no other method than PGT, or none: those in one series differ in α alone.

    Raises:
        InputError: fewer than two α of any setting.
    """
    found: dict[str, list[Group]] = defaultdict(list)
    for group in read_groups(root, experiment):
        if group.finished and group.method in ("baseline", "pgt"):
            found[json.dumps([group.experiment, _setting(group)], sort_keys=True)].append(group)
    series = [sorted(groups, key=lambda group: group.alpha) for groups in found.values()]
    if all(len(groups) < 2 for groups in series):
        command = f"pgt train -m experiment={experiment} method=pgt method.alpha=1,0.5,0.25"
        raise InputError(f"there are not two α of one setting under {root / experiment}: `{command}`, say")
    settings = [_setting(groups[0]) for groups in series]
    return {_label(groups[0], settings): groups for groups in series}


def _setting(group: Group) -> dict[str, Any]:
    values = flat(group.finished[0][1].identity)
    return {key: value for key, value in values.items() if key != "method.alpha"}


def _label(group: Group, settings: Sequence[Mapping[str, Any]]) -> str:
    """The experiment, and what tells it from the others' settings."""
    return " ".join(part for part in (group.experiment, setting_of(_setting(group), settings)) if part)


def accuracy(root: Path, experiment: str) -> Any:
    """Training and test top-1 over α, mean ± deviation over seeds (Figs. 10-12)."""
    series = read_series(root, experiment)
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, metric, label in zip(
        axes, ("train_top1", "test_top1_best"), ("Training top-1 (%)", "Test top-1, best epoch (%)"), strict=True
    ):
        for index, (name, groups) in enumerate(series.items()):
            _bars(axis, groups, metric, f"{name} ({_seeds(groups)})", index)
            if groups[-1].alpha == 1:
                axis.axhline(_mean(groups[-1], metric), color=style(index)["color"], linewidth=0.8, linestyle=":")
        axis.set(ylabel=label)
        _alphas(axis, series)
        axis.grid(True, alpha=0.3)
        axis.legend(frameon=False, fontsize="small")
    figure.suptitle(f"Mean ± deviation over seeds; dotted: α = 1, the baseline. {_data(series)}", fontsize="medium")
    return figure


def logits(root: Path, experiment: str) -> Any:
    """Logit norm over α; loss at z and at α·z over α; loss over logit norm with its regression line (Fig. 8)."""
    figure, (left, middle, right) = pyplot().subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    series = read_series(root, experiment)
    for index, (name, groups) in enumerate(series.items()):
        of = f", {name}" if len(series) > 1 else ""
        _bars(left, groups, "test_logit_norm", f"{name} ({_seeds(groups)})", index)
        _bars(middle, groups, "test_loss", f"at z{of}", 2 * index)
        _bars(middle, groups, "test_loss_alpha", f"at α·z, calibrated{of}", 2 * index + 1)
        _scatter(right, groups, index)
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
    return f"Data: {data_of(group for groups in series.values() for group in groups)}"


def _alphas(axis: Any, series: Series) -> None:
    """A tick at each value, with its number where there is room."""
    values = sorted({group.alpha for groups in series.values() for group in groups})
    room, labels, last = 0.08 * (values[-1] - values[0]), [], -math.inf
    for value in values:
        labels.append(f"{value:g}" if value - last > room else "")
        last = value if labels[-1] else last
    axis.set(xlabel="α", xticks=values, xticklabels=labels)


def _bars(axis: Any, groups: Sequence[Group], metric: str, label: str, index: int) -> None:
    samples = [sample(_values(group, metric)) for group in groups]
    deviations = [value.deviation if value.n > 1 else 0.0 for value in samples]
    means = [value.mean for value in samples]
    look = {"marker": "osD^v"[index % 5], "markersize": 4, "capsize": 3, **style(index)}
    axis.errorbar([group.alpha for group in groups], means, deviations, label=label, **look)


def _scatter(axis: Any, groups: Sequence[Group], index: int) -> None:
    """A point a run, with the line of least squares."""
    import numpy as np

    norms = np.array([value for group in groups for value in _values(group, "test_logit_norm")])
    losses = np.array([value for group in groups for value in _values(group, "test_loss")])
    axis.plot(norms, losses, "o", color=style(index)["color"], markersize=4)
    if len(groups) < 2:
        return
    ends = np.array([norms.min(), norms.max()])
    slope, intercept = np.polyfit(norms, losses, 1)
    fit = f"{slope:.5f} x {'+' if intercept >= 0 else '−'} {abs(intercept):.5f}"
    r2 = np.corrcoef(norms, losses)[0, 1] ** 2
    axis.plot(ends, slope * ends + intercept, label=f"{fit} ({len(norms)} runs, R² = {r2:.2f})", **style(index))


def _values(group: Group, metric: str) -> list[float]:
    return [getattr(summary, metric) for _, summary in group.finished]


def _mean(group: Group, metric: str) -> float:
    return fmean(_values(group, metric))


def _seeds(groups: Sequence[Group]) -> str:
    counts = sorted({len(group.finished) for group in groups})
    return f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
