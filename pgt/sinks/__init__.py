"""Where the records of a run go."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from pgt.sinks.console import Console, Screen
from pgt.sinks.jsonl import JsonLines
from pgt.sinks.mirrors import About, check, start_mirrors
from pgt.sinks.norms import NormsFile
from pgt.types import Record, Sink


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
