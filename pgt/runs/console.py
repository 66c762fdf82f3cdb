"""The progress of a run on the screen and in `log.txt`."""

from __future__ import annotations

import math
import time
from pathlib import Path

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from pgt.core.files import writing
from pgt.core.types import BETWEEN_WARNINGS, Record

QUIET_SECONDS = 30
"""Time between two lines of progress if there is no terminal."""
WIDE = 120
"""Columns that a terminal needs for a bar beside the numbers."""
SPEED_SECONDS = 3600
"""Window over which the speed is averaged to estimate the time left; long, since records may be minutes apart."""


class Screen(Terminal):
    """Standard output by rich. If its reader has left (`| head`), printing raises BrokenPipeError, as `print` does."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Replace rich's reaction, which ends the process without a word."""
        raise BrokenPipeError


class Console:
    """Sink that shows a progress line in a terminal, or prints a line every 30 seconds; logs a line an epoch.

    Args:
        title: printed before lines of progress and warnings.
        total_steps: of the whole run.
        log: file that the line of each epoch is appended to.
        terminal: standard output by default.
    """

    def __init__(self, title: str, total_steps: int, log: Path, terminal: Terminal | None = None) -> None:
        self.terminal = terminal or Screen()
        self._title, self._total = title, total_steps
        self._path, self._log = log, log.open("a", encoding="utf-8", errors="backslashreplace")
        self._spoke = time.monotonic()
        self._warned: set[str] = set()
        self._progress: Progress | None = None
        if self.terminal.is_terminal:
            self._progress = Progress(
                TimeRemainingColumn(compact=True, table_column=Column(min_width=8)),
                TextColumn("{task.fields[state]}"),
                *([BarColumn(bar_width=24)] if self.terminal.width >= WIDE else []),
                console=self.terminal,
                speed_estimate_period=SPEED_SECONDS,
                transient=True,
            )
            self._task = self._progress.add_task(title, total=total_steps, state="")
            self._progress.start()

    def write(self, step: int, record: Record) -> None:
        state = line(record)
        for warning in record.get("warning", "").split(BETWEEN_WARNINGS):
            kind = warning.split(":")[-1]  # once for each kind of warning: the numbers before its last colon change
            if warning and kind not in self._warned:
                self._warned.add(kind)
                self.say(f"{self._title}: warning: {warning}")
        if record["event"] == "epoch":
            self._note(state)
        if self._progress is not None:
            shown = state if self.terminal.width >= WIDE else state.replace("  ", " ")
            self._progress.update(self._task, completed=step + 1, state=shown)
        elif time.monotonic() - self._spoke > QUIET_SECONDS:
            self._spoke = time.monotonic()
            self.terminal.print(f"{self._title}  step {step + 1}/{self._total}  {state}", markup=False)

    def say(self, text: str) -> None:
        """Print a line that stays on the screen, and log it."""
        self.terminal.print(text, markup=False)
        self._note(text)

    def _note(self, text: str) -> None:
        with writing(self._path):
            print(text, file=self._log, flush=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        with writing(self._path):  # after a write that failed, closing tries again
            self._log.close()


def line(record: Record) -> str:
    """Return a record as one line for people."""
    loss, top1 = (math.nan if record[key] is None else record[key] for key in ("train_loss", "train_top1"))
    parts = [f"epoch {record['epoch'] + 1}", f"loss {loss:.3f}", f"train {top1:.2f}%"]
    if "test_top1" in record:
        parts.append(f"test {record['test_top1']:.2f}%")
    parts.append(f"lr {record['lr']:.3g}")
    if record["loss_scale"] != 1:
        parts.append(f"scale {record['loss_scale']:g}")
    if factors := [value for key, value in record.items() if key.startswith("amplification/")]:
        parts.append(f"amplified {sum(factor != 1 for factor in factors)} of {len(factors)} layers")
    parts.append(f"{record['images_per_second']:,.0f} images/s")
    return "  ".join(parts)
