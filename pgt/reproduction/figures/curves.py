"""Fig. 4: accuracy by epoch, and the epochs that a method saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pgt.core.errors import InputError
from pgt.reproduction.figures.style import logarithmic, pyplot, style
from pgt.reproduction.groups import Group, data_of, read_groups
from pgt.runs.folder import find, read_epochs

METRICS = {"train_top1": "Training top-1 (%)", "test_top1": "Test top-1 (%)"}

PAPER = {
    "ResNet-18": ("table1/resnet18_cosine_baseline", "table1/resnet18_cosine_pgt"),
    "ResNet-50": ("table1/resnet50_cosine_baseline", "table3/row5"),
    "ResNet-50, 60 epochs against 100": ("table1/resnet50_cosine_baseline", "fig4/resnet50_pgt_60"),
}
"""Panels (a), (b) and (c): experiments of each, its baseline first."""


@dataclass(frozen=True)
class Curve:
    """The finished runs of a setting, measured on `data`: a list of epoch records each."""

    label: str
    data: str
    runs: Sequence[Sequence[dict[str, Any]]]

    def of(self, metric: str) -> tuple[list[int], list[list[float]]]:
        """The epochs (from 1) where every run has the metric, and its values there, a list an epoch."""
        rows = [records for records in zip(*self.runs, strict=False) if all(metric in record for record in records)]
        return [row[0]["epoch"] + 1 for row in rows], [[record[metric] for record in row] for row in rows]


def draw(root: Path, experiment: str | None) -> Any:
    """Training and test top-1 by epoch, both axes logarithmic, and below when each curve reaches the baseline's end.

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
    found: dict[str, list[Curve]] = {}
    for group in read_groups(root, experiment):
        if group.finished:
            found.setdefault(group.experiment, []).append(_curve(group))
    if not found:
        raise InputError(f"no finished runs under {root / experiment}: `pgt table {experiment}` shows what there is")
    return found


def _paper(root: Path) -> dict[str, list[Curve]]:
    """The panels that have runs."""
    found = {}
    for title, experiments in PAPER.items():
        groups = [group for name in experiments if find(root, name) for group in read_groups(root, name)]
        curves = [_curve(group) for group in groups if group.finished]
        if curves:
            found[title] = curves
    if not found:
        command = "pgt train -m experiment=" + ",".join(dict.fromkeys(sum(PAPER.values(), ())))
        raise InputError(f"no finished run of the paper's figure under {root}: `{command}`, or name an experiment")
    return found


def _curve(group: Group) -> Curve:
    records = [read_epochs(folder, summary) for folder, summary in group.finished]
    return Curve(f"{group.label} (n={len(group.finished)})", data_of([group]), records)


def _accuracy(axis: Any, curves: Sequence[Curve], metric: str) -> None:
    for index, curve in enumerate(curves):
        epochs, values = curve.of(metric)
        axis.plot(epochs, [fmean(v) for v in values], label=curve.label, **style(index))
        axis.fill_between(
            epochs, [min(v) for v in values], [max(v) for v in values], color=style(index)["color"], alpha=0.12
        )
    logarithmic(axis)
    axis.legend(frameon=False, fontsize="small")


def _saved(axis: Any, curves: Sequence[Curve]) -> None:
    """Mean test accuracy, the first curve's last value, and where the others first reach it."""
    from matplotlib.ticker import MaxNLocator

    goal = fmean(curves[0].of("test_top1")[1][-1])
    lowest = goal
    for index, curve in enumerate(curves):
        epochs, values = curve.of("test_top1")
        means = [fmean(v) for v in values]
        lowest = min(lowest, means[len(means) // 3])
        there = next((epoch for epoch, mean in zip(epochs, means, strict=True) if mean >= goal), None)
        label = f"{curve.label}: {f'in epoch {there}' if there else 'not'}"
        axis.plot(epochs, means, label=label, **style(index))
        if there:
            axis.plot([there], [means[epochs.index(there)]], "o", color=style(index)["color"], markersize=5)
    axis.axhline(goal, color="grey", linewidth=0.8, linestyle=":")
    axis.set(xlabel="Epoch", ylabel="Test top-1 (%)", ylim=(lowest, None))
    axis.set_title(f"Reaching {goal:.2f} %, the last epoch of {curves[0].label}", fontsize="medium")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(True, alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
