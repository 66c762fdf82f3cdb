"""The paper's figures from runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgt.errors import InputError
from pgt.runs import FINISHED, find, method_label, read_metrics

COLOURS = {
    "baseline": "#000000",
    "pgt": "#0072B2",
    "gc": "#E69F00",
    "agc": "#009E73",
    "gc+pgt": "#D55E00",
    "agc+pgt": "#CC79A7",
}
"""Okabe and Ito's palette: told apart by the colour-blind and in greyscale print."""

FORMATS = (".png", ".svg", ".pdf")

Curves = dict[str, dict[str, list[list[float]]]]
"""Of one experiment: method -> metric -> one list over the epochs for each run."""

METRICS = {"train_top1": "Training top-1 error (%)", "test_top1": "Test top-1 error (%)"}


def accuracy_curves(root: Path, experiment: str, output: Path) -> None:
    """Training and test error by epoch, one column an experiment, both axes logarithmic (Fig. 4 a, b).

    Finished runs only. Lines are means over seeds; bands reach from the least to the greatest.

    Args:
        root: the runs folder.
        experiment: one, or a folder of them.
        output: the picture; its ending says which format.

    Raises:
        InputError: no run there, or a format that cannot be written.
    """
    if output.suffix not in FORMATS:
        raise InputError(f"cannot draw {output}: end the name in one of {', '.join(FORMATS)}")
    curves = _read(root, experiment)
    if not curves:
        raise InputError(f"no finished runs under {root / experiment}: run `pgt train experiment={experiment}` first")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(METRICS), len(curves), figsize=(5.5 * len(curves), 7), squeeze=False, layout="constrained"
    )
    for column, (name, methods) in enumerate(sorted(curves.items())):
        for row, (metric, label) in enumerate(METRICS.items()):
            _draw(axes[row][column], methods, metric)
            axes[row][column].set(title=name if row == 0 else "", xlabel="Epoch", ylabel=label)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    pyplot.close(figure)


def _read(root: Path, experiment: str) -> dict[str, Curves]:
    found: dict[str, Curves] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for folder, summary in find(root, experiment):
        if summary.status != FINISHED:
            continue
        epochs = [record for record in read_metrics(folder) if record["event"] == "epoch"]
        for metric in METRICS:
            values = [record[metric] for record in epochs]
            found[summary.experiment or "custom"][method_label(summary.identity)][metric].append(values)
    return found


def _draw(axis: Any, methods: Curves, metric: str) -> None:
    """Error of every method over the epochs: an error of 0 is drawn at the axis' foot."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    positive = [100 - v for m in methods.values() for run in m[metric] for v in run if v < 100]
    foot = min(positive, default=1.0) / 2
    for method, metrics in sorted(methods.items(), key=lambda item: list(COLOURS).index(item[0])):
        runs = metrics[metric]
        length = min(len(run) for run in runs)
        errors = [[max(100 - run[epoch], foot) for run in runs] for epoch in range(length)]
        epochs = range(1, length + 1)
        colour = COLOURS[method]
        axis.plot(epochs, [_mean(e) for e in errors], color=colour, label=method)
        axis.fill_between(epochs, [min(e) for e in errors], [max(e) for e in errors], color=colour, alpha=0.12)
    axis.set(xscale="log", yscale="log", ylim=(foot, 100))
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_formatter(StrMethodFormatter("{x:g}"))
        direction.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(frameon=False)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
