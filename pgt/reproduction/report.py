"""One HTML page of all tables, figures and runs, which a browser opens from the disk."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from pgt.core.errors import InputError
from pgt.core.machine import now
from pgt.reproduction import figures, paper, paper_tables, published, tables
from pgt.reproduction.figures import grid
from pgt.reproduction.formats import Table
from pgt.reproduction.groups import unlike
from pgt.runs.folder import FINISHED, read_epochs
from pgt.runs.frame import frame, records
from pgt.runs.labels import with_alpha
from pgt.runs.norms import read_norms

Run = Mapping[str, Any]
"""A row of the frame of runs (see `pgt.runs.frame`)."""

WIDTH, HEIGHT = 460, 170
"""Size of a run's curve, in pixels."""


@dataclass
class Section:
    """The part of the page about one run.

    Attributes:
        run: its row of the frame.
        difference: (key, value, the baseline's value); None without a baseline of the same seed.
        environment: name and value.
        curves: name, colour and SVG points of accuracy by epoch.
        layers: (index, name, filters, zeroed out, least and median norm) at the last recorded step.
        trouble: why curves or layers could not be read.
    """

    run: Run
    difference: Sequence[tuple[str, Any, Any]] | None
    environment: Mapping[str, Any]
    curves: Sequence[tuple[str, str, str]] = ()
    layers: Sequence[tuple[Any, ...]] = ()
    trouble: str = ""

    @property
    def title(self) -> str:
        run = self.run
        return f"{run['experiment']} {with_alpha(run['method'], run['alpha'])} seed {run['seed']}"


def page(root: Path, drawn: bool) -> str:
    """The page's HTML.

    Args:
        root: the runs folder.
        drawn: whether with figures, which take a second or two each.

    Raises:
        InputError: there is no run under `root`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    runs = frame(root)
    if runs.empty:
        raise InputError(f"no runs under {root}: `pgt train experiment=demo/bn` makes one in seconds")
    experiments = sorted(runs.experiment.unique())
    environment = Environment(
        loader=PackageLoader("pgt.reproduction", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        made=now(),
        finished=(runs.status == FINISHED).sum(),
        count=len(runs),
        rows=_measured_rows(runs),
        rule=_html(paper_tables.RULE),
        papers=[paper_tables.paper_table(runs, number) for number in (1, 2, 3)],
        others=[(name, tables.experiment_table(root, name)) for name in experiments if not _is_paper(name)],
        pictures=list(_pictures(root, experiments)) if drawn else [],
        sections=_sections(runs),
        width=WIDTH,
        height=HEIGHT,
        notes=_notes,
    )


def _notes(table: Table) -> list[tuple[Markup, list[Markup]]]:
    """The notes of a table as text and list items; without the rule, which the page shows once."""
    return [(_html(note.text), list(map(_html, note.items))) for note in table.notes if note.text != paper_tables.RULE]


def _html(text: str) -> Markup:
    """Markdown's code and emphasis, and nothing else of it, as HTML."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*([^*]+)\*", r"<em>\1</em>", marked))  # nosec B704  # the text is escaped above


def _is_paper(experiment: str) -> bool:
    return experiment in {row.experiment for row in published.all_rows()}


def _measured_rows(runs: pd.DataFrame) -> int:
    """Count the paper's rows that have a finished run."""
    lines = [line for number in (1, 2, 3) for line in paper.measure(runs, number)[0]]
    return len({(line.row.table, line.row.number) for line in lines if line.seeds})


def _pictures(root: Path, experiments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(title, `data:` address) of each figure that there are runs for: the paper's own, and other experiments'."""
    wanted: list[tuple[int, str | None]] = [(number, None) for number in figures.NUMBERS]
    own = [name for name in experiments if not _is_paper(name) and name not in grid.EXPERIMENTS.values()]
    wanted += [(number, name) for name in own for number in (4, 5, 8, 10)]
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


def _sections(runs: pd.DataFrame) -> list[Section]:
    """A section for each run: by experiment, method and α, the baseline first, and seed."""
    order = sorted(
        records(runs),
        key=lambda run: (run["experiment"], run["method"] != "baseline", run["method"], -run["alpha"], run["seed"]),
    )
    baselines = [run for run in order if run["method"] == "baseline"]
    return [_section(run, _baseline(run, baselines)) for run in order]


def _baseline(run: Run, baselines: Sequence[Run]) -> Run | None:
    """The baseline's run of the same seed: of the same experiment, or of the row that the paper compares with."""
    rows = [r for r in published.all_rows() if run["experiment"] in (r.experiment, paper.truncation(r.experiment))]
    names = {run["experiment"], *(base.experiment for base in map(published.baseline, rows) if base)}
    found = [other for other in baselines if other["experiment"] in names and other["seed"] == run["seed"]]
    others = [other for other in found if other["run_id"] != run["run_id"]]
    return min(others, key=lambda other: len(unlike(_config(run), _config(other))), default=None)


def _config(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.items() if "." in name}


def _section(run: Run, baseline: Run | None) -> Section:
    difference = unlike(_config(run), _config(baseline)) if baseline else None
    section = Section(run, difference, _environment(run["run"]))
    try:
        section.curves = _curves(read_epochs(run["run"], run["epochs"]))
        section.layers = _layers(run["run"])
    except InputError as error:
        section.trouble = str(error)
    return section


def _curves(epochs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    found = []
    last = max(len(epochs) - 1, 1)
    for name, metric, colour in (("training", "train_top1", "#999999"), ("test", "test_top1", "#0072B2")):
        points = [
            f"{30 + (WIDTH - 40) * record['epoch'] / last:.1f},{10 + (HEIGHT - 30) * (1 - record[metric] / 100):.1f}"
            for record in epochs
            if record.get(metric) is not None
        ]
        found.append((name, colour, " ".join(points)))
    return found


def _environment(folder: Path) -> dict[str, Any]:
    """Device, Python and packages of the last start. Names of machines are left out: a page may be published."""
    path = folder / "environment.json"
    try:
        found = json.loads(path.read_text())
        start = found["starts"][-1]
        packages = ", ".join(f"{name} {version}" for name, version in start["packages"].items() if version)
        return {
            "data": found["manifest"],
            "starts": len(found["starts"]),
            "device": start["device"],
            "python": start["python"],
            "packages": packages,
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return {}


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
