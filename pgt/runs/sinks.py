"""Sinks, which take the records of a run: `metrics.jsonl`, which all others mirror, and several sinks as one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pgt.core.errors import InputError
from pgt.core.files import writing
from pgt.core.types import Record, Sink


class JsonLines:
    """Appends records to `metrics.jsonl`, one a line.

    Args:
        path: of the file.
        size: length of the file in bytes when the checkpoint was written. What follows is cut off, since the resumed
            run writes it again.

    Raises:
        InputError: the file is shorter than `size`.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self._path, self._file = path, path.open("ab")
        if self._file.tell() < size:
            self._file.close()
            raise InputError(
                f"{path} has lost records that its checkpoint counts: add trainer.force=true to start over"
            )
        self._file.truncate(size)

    def write(self, step: int, record: Record) -> None:
        """Append a record. NaN and infinite numbers become null, since JSON cannot express them."""
        plain = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        with writing(self._path):
            self._file.write((json.dumps({"step": step, **plain}) + "\n").encode())
            self._file.flush()

    def sync(self) -> int:
        """Put everything on the disk and return the size in bytes."""
        with writing(self._path):
            os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size  # `tell` is beyond the end after a truncation

    def close(self) -> None:
        with writing(self._path):  # after a write that failed, closing tries again
            self._file.close()


class Sinks:
    """Several sinks as one."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def write(self, step: int, record: Record) -> None:
        for sink in self.sinks:
            sink.write(step, record)

    def close(self) -> None:
        """Close all sinks in order, even if one of them fails."""
        with ExitStack() as stack:
            for sink in reversed(self.sinks):
                stack.callback(sink.close)
