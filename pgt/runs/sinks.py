"""Where the records of a run go."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from pgt.core.types import Record, Sink
from pgt.runs.console import Console, Screen
from pgt.runs.mirrors import About, check, start_mirrors
from pgt.runs.norms import NormsFile
from pgt.runs.records import JsonLines


class Sinks:
    """Several sinks as one."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def write(self, step: int, record: Record) -> None:
        for sink in self.sinks:
            sink.write(step, record)

    def close(self) -> None:
        """Close all, in order, even where one of them fails."""
        with ExitStack() as stack:
            for sink in reversed(self.sinks):
                stack.callback(sink.close)


__all__ = ["About", "Console", "JsonLines", "NormsFile", "Screen", "Sinks", "check", "start_mirrors"]
