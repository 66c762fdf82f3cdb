"""The progress of the runs in a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pgt.reproduction.cost import work
from pgt.reproduction.formats import Column, Note, Table, table
from pgt.reproduction.groups import warnings
from pgt.runs.folder import DIVERGED, UNFINISHED, holder, last_record
from pgt.runs.frame import frame, records
from pgt.runs.labels import with_alpha

TRAINING, STOPPED = "training", "stopped"
"""An unfinished run that a process holds, and one that no process holds, to be resumed."""


def standings(root: Path, experiment: str | None = None) -> pd.DataFrame:
    """The frame of runs (see `pgt.runs.frame`) as they stand now.

    Columns that it changes or adds:

    - `status`: `finished`, `diverged`, `training` or `stopped`.
    - `holder`: the process that trains the run; empty if none does.
    - `images_per_second`: of its whole epochs, or of the first one so far.
    - `silent`: seconds since its last record.
    - `left`: seconds of training at the speed so far, evaluations included, for all epochs that are not done.

    The last three are NaN if they are not known.

    Args:
        root: the runs folder.
        experiment: only this one, or all that its name is a folder of.
    """
    runs = frame(root, experiment)
    names = ["status", "holder", "images_per_second", "silent", "left"]
    now = pd.DataFrame([_standing(run) for run in records(runs)], columns=names)
    return runs.assign(**{name: now[name] for name in names})


def _standing(run: Mapping[str, Any]) -> tuple[str, str, float | None, float | None, float | None]:
    folder, status, held, left = run["run"], run["status"], "", None
    record = last_record(folder)
    speed = run["images_per_second"] or record.get("images_per_second")
    if status == UNFINISHED:
        held = holder(folder)
        status = TRAINING if held else STOPPED
        rest = work(run, run["epochs"])
        left = rest.gpu_seconds(speed) if speed and rest.images is not None else None
    silent = max(0.0, time.time() - (folder / "metrics.jsonl").stat().st_mtime) if record else None
    return status, held, speed, silent, left


def status_table(found: pd.DataFrame, root: Path) -> Table:
    """A line for each run; below, how many runs have each status, and what to know of those that do not finish."""
    rows = records(found)
    counted = ", ".join(f"{number} {status}" for status, number in found.status.value_counts().sort_index().items())
    notes = [f"{row['run']}: trained by {row['holder']}" for row in rows if row["status"] == TRAINING]
    notes += [f"{row['run']}: diverged: {row['reason']}" for row in rows if row["status"] == DIVERGED]
    if any(row["status"] == STOPPED for row in rows):
        notes.append("to resume a stopped run, repeat its command (environment.json in its folder has it)")
    columns: Sequence[Column[Mapping[str, Any]]] = (
        ("Run", lambda row: str(row["run"].relative_to(root))),
        ("Method", lambda row: with_alpha(row["method"], row["alpha"])),
        ("Seed", lambda row: str(row["seed"])),
        ("Status", lambda row: row["status"]),
        ("Epochs", lambda row: f"{row['epochs']}/{row['recipe.epochs']}"),
        ("Best top-1", lambda row: _known(row["test_top1_best"], "{:.2f}".format)),
        ("Images/s", lambda row: _known(row["images_per_second"], "{:,.0f}".format)),
        ("Left", lambda row: _known(row["left"], duration)),
        ("Last record", lambda row: _known(row["silent"], lambda seconds: f"{duration(seconds)} ago")),
    )
    counts = Note(f"{len(found)} run{'s' if len(found) > 1 else ''}: {counted}", notes)
    return table(rows, columns, notes=[counts, *warnings(found)])


def _known(value: float | None, text: Callable[[float], str]) -> str:
    return "" if value is None else text(value)


def duration(seconds: float) -> str:
    """A time in one or two units: `3 d 4 h`, `4 h 5 min`, `5 min`, `6 s`."""
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
