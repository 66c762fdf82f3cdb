"""Figs. 8 and 10-12: what α does to accuracy, logits and loss."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pgt.errors import InputError
from pgt.reproduction.figures.style import logarithmic, pyplot, style
from pgt.reproduction.groups import Group, flat, read_groups, setting_of
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
    series = [sorted(groups, key=lambda group: group.alpha) for groups in found.values() if len(groups) > 1]
    if not series:
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
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, metric, label in zip(
        axes, ("train_top1", "test_top1_best"), ("Training top-1 (%)", "Test top-1, best epoch (%)"), strict=True
    ):
        for index, (name, groups) in enumerate(read_series(root, experiment).items()):
            _bars(axis, groups, metric, f"{name} ({_seeds(groups)})", index)
            if groups[-1].alpha == 1:
                axis.axhline(_mean(groups[-1], metric), color=style(index)["color"], linewidth=0.8, linestyle=":")
        axis.set(xlabel="α", ylabel=label)
        axis.grid(True, alpha=0.3)
        axis.legend(frameon=False, fontsize="small")
    figure.suptitle("Mean ± deviation over seeds; dotted: α = 1, the baseline", fontsize="medium")
    return figure


def logits(root: Path, experiment: str) -> Any:
    """Logit norm over α; loss at z and at α·z over α; loss over logit norm with its regression line (Fig. 8)."""
    figure, (left, middle, right) = pyplot().subplots(1, 3, figsize=(14, 4), layout="constrained")
    for index, (name, groups) in enumerate(read_series(root, experiment).items()):
        _bars(left, groups, "test_logit_norm", f"{name} ({_seeds(groups)})", index)
        _bars(middle, groups, "test_loss", "at z", 2 * index)
        _bars(middle, groups, "test_loss_alpha", "at α·z, calibrated", 2 * index + 1)
        _scatter(right, groups, index)
    if experiment in EXPERIMENTS.values():  # on other data it is another line
        slope, intercept = PAPER_LINE
        right.axline((0, intercept), slope=slope, linestyle="--", color="grey", label=f"paper: {slope} x + {intercept}")
    left.set(xlabel="α", ylabel="Mean 2-norm of the logits, test set")
    middle.set(xlabel="α", ylabel="Test loss")
    right.set(xlabel="Logit norm", ylabel="Test loss at z")
    logarithmic(left, horizontal=False)
    logarithmic(middle, horizontal=False)
    for axis in (left, middle, right):
        axis.grid(True, alpha=0.3)
        axis.legend(frameon=False, fontsize="small")
    return figure


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
    ends = np.array([norms.min(), norms.max()])
    slope, intercept = np.polyfit(norms, losses, 1)
    axis.plot(ends, slope * ends + intercept, label=f"loss = {slope:.5f} x + {intercept:.5f}", **style(index))


def _values(group: Group, metric: str) -> list[float]:
    return [getattr(summary, metric) for _, summary in group.finished]


def _mean(group: Group, metric: str) -> float:
    return fmean(_values(group, metric))


def _seeds(groups: Sequence[Group]) -> str:
    counts = sorted({len(group.finished) for group in groups})
    return f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
