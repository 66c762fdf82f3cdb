"""What the user sees of a run while it goes on, and what `log.txt` keeps."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from pgt.core.streams import silence
from pgt.core.types import Record

QUIET_SECONDS = 30
WIDE = 120
"""Columns from which on there is room for a bar beside the numbers."""
SPEED_SECONDS = 3600
"""Of the past, that the time left is estimated by: records may be minutes apart."""


class Screen(Terminal):
    """A terminal or a pipe that may lose its reader (`| head`): then it falls silent, and training goes on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, soft_wrap=True, **options)

    def on_broken_pipe(self) -> None:
        """What rich calls; its own would end the process without a word."""
        self.quiet = True
        silence(self.file.fileno())
        try:
            print("pgt: nobody reads standard output any more; runs go on and write to log.txt", file=sys.stderr)
        except BrokenPipeError:
            silence(2)


class Console:
    """A progress line in a terminal; elsewhere a plain line every 30 seconds. Epochs go to the log file.

    Args:
        title: in front of plain lines and warnings.
        total_steps: of the whole run.
        log: file that each epoch's line is appended to.
        terminal: where to; standard output by default.
    """

    def __init__(self, title: str, total_steps: int, log: Path, terminal: Terminal | None = None) -> None:
        self.terminal = terminal or Screen()
        self._title, self._total = title, total_steps
        self._log = log.open("a")
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
        warning = record.get("warning")
        if warning and warning.split(":")[-1] not in self._warned:  # once a run, whatever number it begins with
            self._warned.add(warning.split(":")[-1])
            self.say(f"{self._title}: warning: {warning}")
        if record["event"] == "epoch":
            print(state, file=self._log, flush=True)
        if self._progress is not None:
            shown = state if self.terminal.width >= WIDE else state.replace("  ", " ")
            self._progress.update(self._task, completed=step + 1, state=shown)
        elif time.monotonic() - self._spoke > QUIET_SECONDS:
            self._spoke = time.monotonic()
            self.terminal.print(f"{self._title}  step {step + 1}/{self._total}  {state}", markup=False)

    def say(self, text: str) -> None:
        """A line that stays, on the screen and in the log."""
        self.terminal.print(text, markup=False)
        print(text, file=self._log, flush=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._log.close()


def line(record: Record) -> str:
    """A record as a reader takes it in."""
    parts = [
        f"epoch {record['epoch'] + 1}",
        f"loss {record['train_loss']:.3f}",
        f"train {record['train_top1']:.2f}%",
    ]
    if "test_top1" in record:
        parts.append(f"test {record['test_top1']:.2f}%")
    parts.append(f"lr {record['lr']:.3g}")
    if record["loss_scale"] != 1:
        parts.append(f"scale {record['loss_scale']:g}")
    parts.append(f"{record['images_per_second']:,.0f} images/s")
    return "  ".join(parts)
