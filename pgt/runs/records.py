"""`metrics.jsonl`: one record a line, the truth that every other sink mirrors."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from pgt.core.errors import InputError
from pgt.core.types import Record


class JsonLines:
    """Appends records to a file.

    Args:
        path: of the file.
        size: bytes of it to keep: what a checkpoint vouches for. Later lines are written again.

    Raises:
        InputError: the file is shorter than that.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self._file = path.open("ab")
        if self._file.tell() < size:
            self._file.close()
            raise InputError(
                f"{path} has lost records that its checkpoint counts: add trainer.force=true to start over"
            )
        self._file.truncate(size)

    def write(self, step: int, record: Record) -> None:
        """Append a record; a number that is not finite becomes null, since JSON has none such."""
        plain = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        self._file.write((json.dumps({"step": step, **plain}) + "\n").encode())
        self._file.flush()

    def sync(self) -> int:
        """Put everything on the disk and return the size in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
