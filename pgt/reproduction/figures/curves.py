"""Fig. 4: accuracy by epoch, and the epochs that a method saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pgt.core.errors import InputError
from pgt.reproduction.figures.style import logarithmic, pyplot, style
from pgt.reproduction.groups import Group, data_of, grouped, read_groups
from pgt.runs.folder import read_epochs
from pgt.runs.frame import frame

METRICS = {"train_top1": "Training top-1 (%)", "test_top1": "Test top-1 (%)"}

PAPER = {
    "ResNet-18": ("table1/resnet18_cosine_baseline", "table1/resnet18_cosine_pgt"),
    "ResNet-50": ("table1/resnet50_cosine_baseline", "table3/row5"),
    "ResNet-50, 60 epochs against 100": ("table1/resnet50_cosine_baseline", "fig4/resnet50_pgt_60"),
}
"""The experiments of panels (a), (b) and (c), the baseline first."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The finished runs of a setting, measured on `data`.

    Attributes:
        metrics: each metric's values by epoch (from 1), a column a run; only epochs in which every run has it.
    """

    label: str
    data: str
    metrics: dict[str, pd.DataFrame]


def accuracy_by_epoch(root: Path, experiment: str | None) -> Any:
    """Draw training and test top-1 by epoch, both axes logarithmic, and when each curve reaches the baseline's end.

    One line a setting: the mean over the seeds of its finished runs; the band reaches from the least to the greatest.

    Args:
        root: the runs folder.
        experiment: one, or a folder of them: a column each, its first curve being the baseline; None: the paper's.

    Raises:
        InputError: no finished run there, or a damaged one.
    """
    panels = _paper(root) if experiment is None else _panels(root, experiment)
    figure, axes = pyplot().subplots(
        3, len(panels), figsize=(5.5 * len(panels), 10), squeeze=False, layout="constrained"
    )
    for column, (name, curves) in enumerate(panels.items()):
        for row, (metric, label) in enumerate(METRICS.items()):
            _accuracy(axes[row][column], curves, metric)
            axes[row][column].set(title=name if row == 0 else "", xlabel="Epoch", ylabel=label)
        _saved(axes[2][column], curves)
    data = ", ".join(dict.fromkeys(curve.data for curves in panels.values() for curve in curves))
    figure.suptitle(f"Line: mean over seeds; band: from the least to the greatest\nData: {data}", fontsize="medium")
    return figure


def _panels(root: Path, experiment: str) -> dict[str, list[Curve]]:
    """A panel for each experiment."""
    groups = [group for group in read_groups(root, experiment) if not group.finished.empty]
    if not groups:
        raise InputError(f"no finished runs under {root / experiment}: `pgt table {experiment}` shows what there is")
    names = dict.fromkeys(group.experiment for group in groups)
    return {name: [_curve(group) for group in groups if group.experiment == name] for name in names}


def _paper(root: Path) -> dict[str, list[Curve]]:
    """The paper's panels, those that have runs."""
    found = {}
    for title, experiments in PAPER.items():
        groups = [group for name in experiments for group in grouped(frame(root, name))]
        curves = [_curve(group) for group in groups if not group.finished.empty]
        if curves:
            found[title] = curves
    if not found:
        command = "pgt train -m experiment=" + ",".join(dict.fromkeys(sum(PAPER.values(), ())))
        raise InputError(f"no finished run of the paper's figure under {root}: `{command}`, or name an experiment")
    return found


def _curve(group: Group) -> Curve:
    runs = group.finished
    epochs = [pd.DataFrame(read_epochs(run, count)) for run, count in zip(runs.run, runs.epochs, strict=True)]
    metrics = {
        name: pd.concat([run.set_index(run.epoch + 1).get(name) for run in epochs], axis=1, join="inner").dropna()
        for name in METRICS
    }
    return Curve(f"{group.label} (n={len(runs)})", data_of(runs), metrics)


def _accuracy(axis: Any, curves: Sequence[Curve], metric: str) -> None:
    for index, curve in enumerate(curves):
        values = curve.metrics[metric]
        axis.plot(values.index, values.mean(axis=1), label=curve.label, **style(index))
        axis.fill_between(values.index, values.min(axis=1), values.max(axis=1), color=style(index)["color"], alpha=0.12)
    logarithmic(axis)
    axis.legend(frameon=False, fontsize="small")


def _saved(axis: Any, curves: Sequence[Curve]) -> None:
    """Plot mean test accuracy, the first curve's last value, and the epoch in which each other first reaches it."""
    from matplotlib.ticker import MaxNLocator

    means = [curve.metrics["test_top1"].mean(axis=1) for curve in curves]
    goal = means[0].iloc[-1]
    for index, (curve, mean) in enumerate(zip(curves, means, strict=True)):
        there = mean.index[mean >= goal][:1]
        label = f"{curve.label}: {f'in epoch {there[0]}' if len(there) else 'not'}"
        axis.plot(mean.index, mean, label=label, **style(index))
        if len(there):
            axis.plot(there, mean[there], "o", color=style(index)["color"], markersize=5)
    axis.axhline(goal, color="grey", linewidth=0.8, linestyle=":")
    lowest = min(goal, *(mean.iloc[len(mean) // 3] for mean in means))
    axis.set(xlabel="Epoch", ylabel="Test top-1 (%)", ylim=(lowest, None))
    axis.set_title(f"Reaching {goal:.2f} %, the last epoch of {curves[0].label}", fontsize="medium")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(True, alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
