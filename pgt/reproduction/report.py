"""One HTML page of everything that the runs say, to be opened from the disk."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgt.config.identity import method_label, method_title
from pgt.core.errors import InputError
from pgt.core.files import write_text
from pgt.core.machine import now
from pgt.reproduction import figures, norms, paper, published, sheets, tables
from pgt.reproduction.figures import grid
from pgt.reproduction.formats import Table
from pgt.reproduction.groups import flat, unlike
from pgt.runs.folder import FINISHED, Summary, find, read_epochs

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 460, 170
"""Of a run's curve, in pixels."""


@dataclass(frozen=True)
class Picture:
    """A figure inside the page.

    Attributes:
        title: over it.
        data: the picture as a `data:` address.
    """

    title: str
    data: str


@dataclass(frozen=True)
class Section:
    """What the page says of a run.

    Attributes:
        title, summary: whose it is, and what it came to.
        curves: name, colour and SVG points of accuracy by epoch.
        difference: (key, value, the baseline's value); None without a baseline of the same seed.
        environment: name and value.
        layers: (index, name, filters, zeroed out, least and median norm) at the last recorded step.
        trouble: what of the folder could not be read.
    """

    title: str
    summary: Summary
    curves: Sequence[tuple[str, str, str]]
    difference: Sequence[tuple[str, Any, Any]] | None
    environment: Mapping[str, Any]
    layers: Sequence[tuple[Any, ...]]
    trouble: str


def write(root: Path, output: Path, drawn: bool) -> None:
    """Write the page.

    Args:
        root: the runs folder.
        output: the file, replaced when the page is whole.
        drawn: with figures, which take a second or two each.

    Raises:
        InputError: there is no run under `root`.
    """
    write_text(output, render(root, drawn))


def render(root: Path, drawn: bool) -> str:
    """The page's HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    runs = find(root)
    if not runs:
        raise InputError(f"no runs under {root}: `pgt train experiment=demo/bn` makes one in seconds")
    experiments = sorted({summary.experiment or "custom" for _, summary in runs})
    papers = [sheets.build(runs, number) for number in (1, 2, 3)]
    environment = Environment(
        loader=PackageLoader("pgt.reproduction", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        made=now(),
        finished=sum(summary.status == FINISHED for _, summary in runs),
        count=len(runs),
        rows=_measured_rows(runs),
        rule=_html(sheets.RULE),
        papers=papers,
        others=[(name, tables.build(root, name)) for name in experiments if not _is_paper(name)],
        pictures=list(_pictures(root, experiments)) if drawn else [],
        sections=_sections(runs),
        width=WIDTH,
        height=HEIGHT,
        items=_items,
    )


def _items(table: Table) -> list[tuple[Markup, list[Markup]]]:
    """The notes of a table but the rule, which the page has once: text, and the items of the list under it."""
    found = []
    for note in table.notes:
        lines = note.splitlines() if note != sheets.RULE else []
        text, items = [x for x in lines if x[:2] != "- "], [x[2:] for x in lines if x[:2] == "- "]
        found.append((_html(" ".join(text)), [_html(item) for item in items]))
    return found


def _html(text: str) -> Markup:
    """Markdown's code and emphasis, and nothing else of it, as HTML."""
    from markupsafe import Markup, escape

    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*([^*]+)\*", r"<em>\1</em>", marked))


def _is_paper(experiment: str) -> bool:
    return experiment in {row.experiment for row in published.all_rows()}


def _measured_rows(runs: Sequence[tuple[Path, Summary]]) -> int:
    """Rows of the paper that have a finished run."""
    lines = [line for number in (1, 2, 3) for line in paper.measure(runs, number)[0]]
    return len({(line.row.table, line.row.number) for line in lines if line.seeds})


def _pictures(root: Path, experiments: Sequence[str]) -> Iterator[Picture]:
    """The figures that the runs allow: the paper's own, and of each other experiment what its runs have."""
    wanted: list[tuple[int, str | None]] = [(number, None) for number in figures.NUMBERS]
    own = [name for name in experiments if not _is_paper(name) and name not in grid.EXPERIMENTS.values()]
    wanted += [(number, name) for name in own for number in (4, 5, 8, 10)]
    for number, experiment in wanted:
        try:
            figure = figures.draw(number, root, experiment)
        except InputError:
            continue  # the runs that it needs are not there
        title = f"Figure {number}" if experiment is None else f"{experiment}, drawn as Figure {number}"
        yield Picture(title, _embedded(figure))


def _embedded(figure: Any) -> str:
    """A figure as the address of an SVG picture."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        figures.style.save(figure, [path])
        return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def _sections(runs: Sequence[tuple[Path, Summary]]) -> list[Section]:
    return [_section(folder, summary, _baseline(summary, runs)) for folder, summary in sorted(runs, key=_position)]


def _position(run: tuple[Path, Summary]) -> tuple[Any, ...]:
    """By experiment, method and α, the baseline first, and seed."""
    _, summary = run
    label, alpha = method_label(summary.identity), summary.identity["method"]["alpha"]
    return summary.experiment or "", label != "baseline", label, -alpha, summary.seed


def _baseline(summary: Summary, runs: Sequence[tuple[Path, Summary]]) -> Summary | None:
    """The baseline's run of the same seed: of the same experiment, or of the row that the paper compares with."""
    rows = [r for r in published.all_rows() if summary.experiment in (r.experiment, paper.truncation(r.experiment))]
    names = {summary.experiment, *(base.experiment for base in map(published.baseline, rows) if base)}
    candidates = [
        other
        for _, other in runs
        if other.seed == summary.seed
        and other.experiment in names
        and other.run_id != summary.run_id
        and method_label(other.identity) == "baseline"
    ]
    own = flat(summary.identity)
    return min(candidates, key=lambda other: len(unlike(own, flat(other.identity))), default=None)


def _section(folder: Path, summary: Summary, baseline: Summary | None) -> Section:
    title = f"{summary.experiment or 'custom'} {method_title(summary.identity)} seed {summary.seed}"
    curves: Sequence[tuple[str, str, str]] = ()
    layers: Sequence[tuple[Any, ...]] = ()
    trouble = ""
    try:
        curves = _curves(read_epochs(folder, summary))
        layers = _layers(folder)
    except InputError as error:
        trouble = str(error)
    difference = unlike(flat(summary.identity), flat(baseline.identity)) if baseline else None
    return Section(title, summary, curves, difference, _environment(folder), layers, trouble)


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
    """Of the last start: program, machine's kind, packages; no names of machines, which a page need not spread."""
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
    import numpy as np

    recorded = norms.read_norms(folder)
    if recorded is None or not len(recorded.steps):
        return []
    gone = norms.zeroed_out(recorded)
    rows = []
    for layer in recorded.layers:
        values = recorded.filters(layer.index)[-1]
        least, median = f"{values.min():.3g}", f"{np.median(values):.3g}"
        rows.append((layer.index, layer.name, layer.filters, gone[layer.index], least, median))
    return rows
