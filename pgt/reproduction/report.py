"""One HTML page of one's own results, the paper's tables, figures and runs, which a browser opens from the disk."""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from pgt.core.errors import InputError
from pgt.core.machine import now
from pgt.reproduction import chart, figures, paper, paper_tables, published, tables
from pgt.reproduction.chart import Chart
from pgt.reproduction.figures import grid
from pgt.reproduction.figures.style import COLOURS
from pgt.reproduction.formats import Table
from pgt.reproduction.groups import (
    BEST,
    Comparison,
    Group,
    baseline_smoothing,
    finished,
    grouped,
    read_runs,
    smoothing,
    unlike,
)
from pgt.reproduction.settings import by_epoch, foremost, method_names, recipe_names, settings
from pgt.runs.folder import FINISHED, read_epochs, read_starts
from pgt.runs.frame import records
from pgt.runs.labels import run_title, with_alpha
from pgt.runs.norms import read_norms

Run = Mapping[str, Any]
"""A row of the frame of runs (see `pgt.runs.frame`)."""

MOST_RUNS = 100
"""The most runs that have a part of the page of their own."""

MOST_DRAWN = 500
"""The most runs of an experiment whose figures are drawn: the page is to be there in seconds."""

MOST_SEEDS = 20
"""The most seeds of a setting that its curve is the mean of, for the same reason."""


@dataclass
class Experiment:
    """The part of the page about an experiment.

    Attributes:
        runs: in words, how many there are of each status.
        best: the setting with the best mean test top-1; None without a finished run.
        settings: number of settings with finished runs.
        chart: test top-1 by epoch, a line a setting; None if there is none, or if its records are damaged.
        notes: on what the chart shows.
    """

    name: str
    runs: str
    table: Table
    best: Group | None
    settings: int
    chart: Chart | None
    notes: str

    @property
    def best_values(self) -> tuple[str, str, str]:
        """The best setting's test top-1, its baseline's, and the difference, paired by seed."""
        if self.best is None:
            return "", "", ""
        base, gain = Comparison(self.best.baseline, self.best.baseline).measured(BEST), self.best.paired(BEST)
        return str(self.best.measured(BEST)), str(base or ""), gain.signed() if gain else ""


@dataclass
class Section:
    """The part of the page about one run.

    Attributes:
        run: its row of the frame.
        title: experiment, what tells its setting from the experiment's others, and seed.
        difference: (key, value, the baseline's value); None without a baseline of the same seed.
        environment: name and value.
        chart: accuracy by epoch.
        layers: (index, name, filters, zeroed out, least and median norm) at the last recorded step.
        trouble: why something could not be read.
    """

    run: Run
    title: str
    difference: Sequence[tuple[str, Any, Any]] | None
    environment: Mapping[str, Any]
    chart: Chart | None = None
    layers: Sequence[tuple[Any, ...]] = ()
    trouble: str = ""


def page(root: Path, experiment: str | None, drawn: bool) -> str:
    """The page's HTML.

    Args:
        root: the runs folder.
        experiment: only this one, or all that its name is a folder of.
        drawn: whether with figures, which take a second or two each.

    Raises:
        InputError: there is no run.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    runs = read_runs(root, experiment)
    environment = Environment(
        loader=PackageLoader("pgt.reproduction", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    groups = grouped(runs)
    of_paper = {row.experiment for row in published.all_rows()}
    own = {
        name: list(members) for name, members in groupby(groups, lambda group: group.experiment) if name not in of_paper
    }
    papers = [(paper_tables.paper_table(runs, number), *_measured_rows(runs, number)) for number in (1, 2, 3)]
    return environment.get_template("report.html.j2").render(
        made=now(),
        finished=(runs.status == FINISHED).sum(),
        count=len(runs),
        rows=sum(measured for _, measured, _ in papers),
        total=sum(total for _, _, total in papers),
        rule=_html(paper_tables.RULE),
        papers=papers,
        experiments=[_experiment(name, members) for name, members in own.items()],
        pictures=list(_pictures(root, own, with_papers=experiment is None)) if drawn else [],
        undrawn=[name for name, members in own.items() if drawn and _count(members) > MOST_DRAWN],
        sections=_sections(runs, groups),
        size=chart,
        notes=_notes,
    )


def _notes(table: Table) -> list[tuple[Markup, list[Markup]]]:
    """The notes of a table as text and list items; without the rule, which the page shows once."""
    return [(_html(note.text), list(map(_html, note.items))) for note in table.notes if note.text != paper_tables.RULE]


def _html(text: str) -> Markup:
    """Text as HTML, with Markdown's code and emphasis; everything else is escaped."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*([^*]+)\*", r"<em>\1</em>", marked))  # nosec B704  # the text is escaped above


def _measured_rows(runs: pd.DataFrame, table: int) -> tuple[int, int]:
    """Count the rows of one of the paper's tables that have a finished run, and all of them."""
    return len({line.row.number for line in paper.measure(runs, table)[0] if line.seeds}), len(published.rows(table))


def _count(groups: Sequence[Group]) -> int:
    """The number of runs of an experiment."""
    return sum(len(group.runs) for group in groups)


def _experiment(name: str, groups: Sequence[Group]) -> Experiment:
    runs = pd.concat([group.runs for group in groups])
    done = [group for group in groups if group.seeds]
    best = max(done, key=lambda group: float(group.finished[BEST].mean()), default=None)
    counted = ", ".join(f"{number} {status}" for status, number in runs.status.value_counts().items())
    drawn, notes = None, ""
    try:
        drawn, notes = _means(finished(runs))
    except InputError as error:
        notes = str(error)
    return Experiment(name, counted, tables.experiment_table(groups), best, len(done), drawn, notes)


def _means(runs: pd.DataFrame) -> tuple[Chart | None, str]:
    """Mean test top-1 by epoch of the foremost settings, and what is shown."""
    if runs.empty:
        return None, ""
    names = [*method_names(runs), *recipe_names(runs)]
    parts, chosen = foremost(settings(runs, names), len(COLOURS))
    curves = {}
    for label, members in parts.items():
        shown = members.sort_values("seed").head(MOST_SEEDS)
        values = by_epoch(shown, ["test_top1"])["test_top1"]
        deviations = values.std(axis=1) if len(shown) > 1 else [None] * len(values)
        label = label or with_alpha(members.method.iloc[0], members.alpha.iloc[0])
        curves[f"{label} (n={len(shown)})"] = zip(values.index, values.mean(axis=1), deviations, strict=True)
    few = f"The first {MOST_SEEDS} seeds." if any(len(members) > MOST_SEEDS for members in parts.values()) else ""
    return chart.chart(curves), " ".join(filter(None, ("Test top-1 (%) by epoch, mean over seeds.", chosen, few)))


def _pictures(root: Path, own: Mapping[str, Sequence[Group]], with_papers: bool) -> Iterator[tuple[str, str]]:
    """(title, `data:` address) of each figure that there are runs for.

    Args:
        own: the groups of each experiment that is not a row of the paper's tables.
        with_papers: whether to draw the paper's figures, from all runs of the folder.
    """
    wanted: list[tuple[int, str | None]] = []
    if with_papers:
        wanted = [(number, None) for number in figures.NUMBERS if number != 2]  # which is of no runs
    for name, groups in own.items():
        drawn = with_papers and name in grid.EXPERIMENTS.values()
        if _count(groups) <= MOST_DRAWN and not drawn:
            wanted += [(number, name) for number in (4, 5, 8, 10)]
    for number, experiment in wanted:
        try:
            figure = figures.draw(number, root, experiment)
        except InputError:
            continue  # there are no runs of it
        heading = f"Figure {number}" if experiment is None else f"{experiment}, drawn as Figure {number}"
        yield heading, _embedded(figure)


def _embedded(figure: Any) -> str:
    """A figure as the address of an SVG picture."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        figures.style.save(figure, [path])
        return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def _sections(runs: pd.DataFrame, groups: Sequence[Group]) -> list[Section]:
    """A section for each of the runs that began last: by experiment, method and α, the baseline first, and seed."""
    shown = runs.sort_values("started", kind="stable").tail(MOST_RUNS)
    baselines = records(runs[(runs.method == "baseline") & runs.seed.isin(shown.seed)])
    return [
        _section(run, group.label, _baseline(run, baselines))
        for group in groups
        for run in records(group.runs[group.runs.index.isin(shown.index)].sort_values("seed"))
    ]


def _baseline(run: Run, baselines: Sequence[Run]) -> Run | None:
    """The baseline's run of the same seed: of the same experiment, or of the row that the paper compares with.

    `baseline_smoothing` says which label smoothing it has.
    """
    wanted = baseline_smoothing(run["method"], smoothing(run))
    rows = [r for r in published.all_rows() if run["experiment"] in (r.experiment, paper.truncation(r.experiment))]
    names = {run["experiment"], *(base.experiment for base in map(published.baseline, rows) if base)}
    found = [other for other in baselines if other["experiment"] in names and other["seed"] == run["seed"]]
    alike = [other for other in found if smoothing(other) == wanted]
    return min(alike, key=lambda other: len(unlike(_config(run), _config(other))), default=None)


def _config(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.items() if "." in name}


def _section(run: Run, label: str, baseline: Run | None) -> Section:
    difference = unlike(_config(run), _config(baseline)) if baseline else None
    title = run_title(run["experiment"], label, run["seed"])
    section = Section(run, title, difference, {"data": run["manifest"]})
    try:
        section.chart = _curves(read_epochs(run["run"], run["epochs"]))
        section.layers = _layers(run["run"])
        section.environment = {"data": run["manifest"], **_environment(run["run"])}
    except InputError as error:
        section.trouble = str(error)
    return section


def _curves(epochs: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Training and test top-1 of a run by epoch."""

    def values(metric: str) -> list[chart.Value]:
        return [(record["epoch"] + 1, record[metric], None) for record in epochs if record.get(metric) is not None]

    return chart.chart({"training top-1": values("train_top1"), "test top-1": values("test_top1")})


def _environment(folder: Path) -> dict[str, Any]:
    """Device, Python and packages of the last start. Names of machines are left out: a page may be published."""
    starts = read_starts(folder)
    if not starts:
        return {}
    last = starts[-1]
    packages = ", ".join(f"{name} {version}" for name, version in last.get("packages", {}).items() if version)
    known = {"starts": len(starts), "device": last.get("device"), "python": last.get("python"), "packages": packages}
    return {name: value for name, value in known.items() if value}


def _layers(folder: Path) -> list[tuple[Any, ...]]:
    """Index, name, filters, zeroed-out filters, least and median norm of each layer at the last recorded step."""
    norms = read_norms(folder)
    if norms is None or not len(norms.steps):
        return []
    gone, rows = norms.zeroed_out(), []
    for index, layer in enumerate(norms.layers, start=1):
        values = norms.filters(index)[-1]
        rows.append((index, layer.name, layer.filters, gone[index], f"{values.min():.3g}", f"{np.median(values):.3g}"))
    return rows
