"""Where the runs of a folder stand."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgt.config.identity import method_title
from pgt.reproduction.cost import work
from pgt.runs.folder import DIVERGED, UNFINISHED, Summary, find, holder, last_record

TRAINING, STOPPED = "training", "stopped"
"""An unfinished run that a process holds, and one that waits to be gone on with."""


@dataclass(frozen=True)
class Standing:
    """A run as it is now.

    Attributes:
        folder, summary: of the run.
        status: `finished`, `diverged`, `training` or `stopped`.
        holder: the process that trains it; empty where none does.
        images_per_second: of its whole epochs, or of the first one so far.
        silent: seconds since its last record; None where there is none yet.
    """

    folder: Path
    summary: Summary
    status: str
    holder: str
    images_per_second: float | None
    silent: float | None

    @property
    def left(self) -> float | None:
        """Seconds of training, evaluations included, at the speed so far, for all epochs but the whole ones that are
        done; None where the speed or the data's size is not known."""
        rest = work(self.summary.identity, self.summary.epochs)
        if self.status not in (TRAINING, STOPPED) or rest.images is None or not self.images_per_second:
            return None
        return rest.gpu_seconds(self.images_per_second)


def standings(root: Path, experiment: str | None = None) -> list[Standing]:
    """Of every run under `root`, sorted by folder.

    Args:
        experiment: only this one, or all that its name is a folder of.
    """
    return [_standing(folder, summary) for folder, summary in find(root, experiment)]


def _standing(folder: Path, summary: Summary) -> Standing:
    record, path = last_record(folder), folder / "metrics.jsonl"
    unfinished = summary.status == UNFINISHED
    held = holder(folder) if unfinished else ""
    return Standing(
        folder,
        summary,
        (TRAINING if held else STOPPED) if unfinished else summary.status,
        held,
        summary.images_per_second or record.get("images_per_second"),
        max(0.0, time.time() - path.stat().st_mtime) if record else None,
    )


HEADERS = ("Run", "Method", "Seed", "Status", "Epochs", "Best top-1", "Images/s", "Left", "Last record")


def render(found: Sequence[Standing], root: Path) -> str:
    """A line a run, how many there are of each status, and what to know of those that do not go on by themselves."""
    from tabulate import tabulate

    drawn = tabulate([_line(one, root) for one in found], HEADERS, tablefmt="github", disable_numparse=True)
    count = Counter(one.status for one in found)
    counted = ", ".join(f"{number} {status}" for status, number in sorted(count.items()))
    lines = [drawn, "", f"{len(found)} run{'s' if len(found) > 1 else ''}: {counted}"]
    lines += [f"- {one.folder}: trained by {one.holder}" for one in found if one.status == TRAINING]
    lines += [f"- {one.folder}: diverged: {one.summary.reason}" for one in found if one.status == DIVERGED]
    if count[STOPPED]:
        lines.append("- a stopped run goes on by the command that began it (environment.json in its folder has it)")
    return "\n".join(lines)


def _line(one: Standing, root: Path) -> list[str]:
    summary, top1 = one.summary, one.summary.test_top1_best
    return [
        str(one.folder.relative_to(root)),
        method_title(summary.identity),
        str(summary.seed),
        one.status,
        f"{summary.epochs}/{summary.identity['recipe']['epochs']}",
        "" if top1 is None else f"{top1:.2f}",
        f"{one.images_per_second:,.0f}" if one.images_per_second else "",
        "" if one.left is None else _duration(one.left),
        "" if one.silent is None else f"{_duration(one.silent)} ago",
    ]


def _duration(seconds: float) -> str:
    """In one or two units: `3 d 4 h`, `4 h 5 min`, `5 min`, `6 s`."""
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
