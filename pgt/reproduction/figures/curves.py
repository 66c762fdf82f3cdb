"""Fig. 4: accuracy by epoch, and the epochs that a method saves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pgt.core.errors import InputError
from pgt.reproduction.figures.style import (
    MOST_LINES,
    MOST_PANELS,
    describe,
    legend_below,
    percent,
    pyplot,
    style,
    wrapped,
)
from pgt.reproduction.groups import baseline_smoothing, farthest, finished, joined, read_runs, smoothing
from pgt.reproduction.settings import (
    Settings,
    by_epoch,
    counted,
    foremost,
    method_names,
    recipe_names,
    settings,
    source,
)
from pgt.runs.frame import frame, records
from pgt.runs.labels import with_alpha

METRICS = {"train_top1": "Training top-1 (%)", "test_top1": "Test top-1 (%)"}

SHORTER = "ResNet-50, 60 epochs against 100"

PAPER = {
    "ResNet-18": ("table1/resnet18_cosine_baseline", "table1/resnet18_cosine_pgt"),
    "ResNet-50": ("table1/resnet50_cosine_baseline", "table3/row5"),
    SHORTER: ("table1/resnet50_cosine_baseline", "fig4/resnet50_pgt_60"),
}
"""The experiments of panels (a), (b) and (c), the baseline first."""


def accuracy_by_epoch(root: Path, experiment: str | None) -> Any:
    """Draw training and test top-1 by epoch, and when each method first reaches the last accuracy of its baseline.

    A column for each recipe that has one of the foremost methods, a line for each of these in it, the baseline first if
    there is one: the mean over the seeds of its finished runs; the band reaches from the least to the greatest.

    Args:
        root: the runs folder.
        experiment: one, or a folder of them; None: the paper's.

    Raises:
        InputError: no finished run there, or a damaged one.
    """
    panels, fewer = _paper(root) if experiment is None else _panels(root, experiment)
    shown = pd.concat(list(panels.values()))
    lines, chosen = foremost(settings(shown, method_names(shown)), MOST_LINES, "methods", keep="baseline")
    if list(lines) == [""]:
        lines = {with_alpha(shown.method.iloc[0], shown.alpha.iloc[0]): shown}
    columns = {
        title: {label: own for label, line in lines.items() if not (own := _among(runs, line)).empty}
        for title, runs in panels.items()
    }
    columns = {title: lines for title, lines in columns.items() if lines}
    return _draw(columns, experiment or "The paper's Fig. 4", joined(fewer, chosen))


def _among(runs: pd.DataFrame, line: pd.DataFrame) -> pd.DataFrame:
    """The runs of a panel that belong to a line."""
    return runs[runs.group_id.isin(line.group_id)]


def _panels(root: Path, experiment: str) -> tuple[Settings, str]:
    """The finished runs of each recipe."""
    runs = finished(read_runs(root, experiment))
    if runs.empty:
        raise InputError(f"no finished runs under {root / experiment}: `pgt table {experiment}` shows what there is")
    return foremost(settings(runs, recipe_names(runs)), MOST_PANELS, "recipes")


def _paper(root: Path) -> tuple[Settings, str]:
    """The paper's panels, those that have runs: one for each recipe."""
    runs = finished(frame(root))
    found: Settings = {}
    for title, names in PAPER.items():
        own, alike = farthest(runs[runs.experiment.isin(names)]), ["experiment"]
        if title == SHORTER and not own.empty:  # the two lengths are what this panel compares
            own = own[own["recipe.epochs"] == own.method.eq("baseline").map({True: 100, False: 60})]
            alike.append("recipe.epochs")
        if not own.empty:
            parts = settings(own, [name for name in recipe_names(own) if name not in alike])
            found |= {", ".join(filter(None, (title, recipe))): part for recipe, part in parts.items()}
    if not found:
        command = "pgt train -m experiment=" + ",".join(dict.fromkeys(sum(PAPER.values(), ())))
        raise InputError(f"no finished run of the paper's figure under {root}: `{command}`, or name an experiment")
    return foremost(found, MOST_PANELS, "panels")


def _draw(columns: Mapping[str, Settings], name: str, chosen: str) -> Any:
    labels = list(dict.fromkeys(label for lines in columns.values() for label in lines))
    shown = [runs for lines in columns.values() for runs in lines.values()]
    same = len({len(runs) for runs in shown}) == 1
    rows = max(map(len, columns.values()))
    figure, axes = pyplot().subplots(
        3, len(columns), figsize=(max(4.6, 2.4 * len(columns)), 6.2 + 0.17 * rows), squeeze=False
    )
    read = [{label: by_epoch(runs, METRICS) for label, runs in lines.items()} for lines in columns.values()]
    end = _end(values.to_numpy().max() for each in read for found in each.values() for values in found.values())
    for (title, lines), histories, column in zip(columns.items(), read, axes.T, strict=True):
        looks = {label: style(labels.index(label)) for label in lines}
        for axis, (metric, label) in zip(column, METRICS.items(), strict=False):
            _accuracy(axis, {name: history[metric] for name, history in histories.items()}, looks)
            axis.set(ylabel=label, ylim=(0, end))
        column[0].set_title(wrapped(title, 30))
        means = {label: history["test_top1"].mean(axis=1) for label, history in histories.items()}
        counts = {label: "" if same else f" (n={len(runs)})" for label, runs in lines.items()}
        _saved(column[2], means, looks, counts, _baselines(lines))
    for axis in axes[:, 1:].flat:
        axis.set_ylabel("")
    goal = "accuracy by epoch, and the first epoch with the last accuracy of the baseline"
    describe(
        figure,
        f"{name}: {goal if any(map(_baselines, columns.values())) else 'accuracy by epoch'}",
        f"Line: mean over seeds; band: from the least to the greatest; {counted(shown)}.",
        chosen,
        source(pd.concat(shown)),
    )
    return figure


def _end(highest: Iterable[float]) -> float:
    """Return the upper limit of the vertical axes, in percent: 100, or if no accuracy is above 50, a little above it.

    Args:
        highest: the highest accuracy of each curve; the panels share the limit.
    """
    top = max(highest)
    return 100 if top > 50 else max(5, 5 * math.ceil(top / 4))


def _accuracy(axis: Any, curves: Mapping[str, pd.DataFrame], looks: Mapping[str, dict[str, str]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for label, values in curves.items():
        look = looks[label]
        axis.plot(values.index, values.mean(axis=1), label=label, **look, **_dot(values))
        axis.fill_between(values.index, values.min(axis=1), values.max(axis=1), color=look["color"], alpha=0.12, lw=0)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _baselines(lines: Settings) -> dict[str, str]:
    """The label of the baseline that each line is compared with; a line without one is left out.

    A baseline that is compared with no other is compared with itself.
    """
    firsts = {label: records(runs.head(1))[0] for label, runs in lines.items()}
    itself = {label: label for label, run in firsts.items() if run["method"] == "baseline"}
    bases = {smoothing(firsts[label]): label for label in reversed(itself)}  # of equal ones the first
    wanted = {label: baseline_smoothing(run["method"], smoothing(run)) for label, run in firsts.items()}
    return itself | {label: bases[each] for label, each in wanted.items() if each in bases}


def _saved(
    axis: Any,
    means: Mapping[str, pd.Series[float]],
    looks: Mapping[str, dict[str, str]],
    counts: Mapping[str, str],
    baselines: Mapping[str, str],
) -> None:
    """Plot mean test accuracy, the last value of each baseline, and the epoch in which each curve first reaches that of
    its own."""
    from matplotlib.ticker import MaxNLocator

    goals = {base: means[base].iloc[-1] for base in dict.fromkeys(baselines.values())}
    for label, mean in means.items():
        there, told = mean.index[:0], f"{label}{counts[label]}"
        if label in baselines:
            there = mean.index[mean >= goals[baselines[label]]][:1]
            told += f": in epoch {there[0]}" if len(there) else ": never"
        axis.plot(mean.index, mean, label=told, **looks[label], **_dot(mean))
        axis.plot(there, mean[there], "o", color=looks[label]["color"], markersize=4)
    for goal in goals.values():
        axis.axhline(goal, color="grey", linewidth=0.8, linestyle=":")
    reaching = ", ".join(f"{goal:.2f} % ({base})" for base, goal in goals.items())
    axis.set(
        xlabel="Epoch",
        ylabel="Test top-1 (%)",
        ylim=(min(99.0, *goals.values(), *(mean.iloc[len(mean) // 3] for mean in means.values())), None),
        title=wrapped(f"Reaching {reaching}" if goals else "No baseline to reach", 28),
    )
    percent(axis)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    legend_below(axis)


def _dot(values: Any) -> dict[str, str]:
    """The marker of a curve of a single epoch, of which no line can be seen."""
    return {"marker": "o"} if len(values) == 1 else {}
