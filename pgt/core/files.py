"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_text(path: Path, text: str) -> None:
    """Replace the contents of `path` by the text and a final newline; makes its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((text + "\n").encode(errors="backslashreplace"))


def write_json(path: Path, values: Any) -> None:
    """Replace `path` by readable JSON."""
    with atomic_write(path) as file:
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        file.write(text.encode(errors="backslashreplace"))  # of file names that are no UTF-8; JSON has the same escapes


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when it is whole and on the disk, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
