"""`norms.bin`: a record of weight norms after the other."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pgt.weight_norms import RECORDS, Floats, Layout, read_records


class NormsFile:
    """Appends records to the file in a folder.

    Args:
        folder: that holds `norms.bin`, or will.
        layout: of its records.
        step: only records of earlier steps are kept; what a crash cut short is not.
    """

    def __init__(self, folder: Path, layout: Layout, step: int = 0) -> None:
        kept = int(np.count_nonzero(read_records(folder, layout)["step"] < step))
        self._file = (folder / RECORDS).open("ab")
        self._file.truncate(kept * layout.record.itemsize)

    def write(self, step: int, values: Floats) -> None:
        """Append the record of a step.

        Args:
            values: all of the record behind its step, flat.
        """
        self._file.write(np.array(step, "<i8").tobytes() + values.astype("<f4").tobytes())
        self._file.flush()

    def sync(self) -> None:
        """Put everything on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
