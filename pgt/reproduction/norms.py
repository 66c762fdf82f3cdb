"""The weight norms that a run has recorded (`record.norms_every`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgt.core.errors import InputError
from pgt.runs.norms import (
    FOLDER,
    LOGITS,
    RECORDS,
    ZEROED_OUT,
    Floats,
    Layer,
    RecordFormat,
    read_format,
    read_records,
)

__all__ = ["ZEROED_OUT", "Layer", "Norms", "read_norms", "zeroed_out"]


@dataclass(frozen=True)
class Norms:
    """The record of T steps, of the weights before each step's update. Values are read when asked for."""

    record_format: RecordFormat
    records: NDArray[Any]

    @property
    def layers(self) -> list[Layer]:
        """Every convolution, in the order of the network's modules."""
        return list(self.record_format.layers)

    @property
    def steps(self) -> NDArray[np.int64]:
        """Optimizer steps from 0, ascending [T]."""
        return np.array(self.records["step"], np.int64)

    def filters(self, index: int) -> Floats:
        """2-norm of each filter of layer `index` (from 1) [T, filters].

        Raises:
            InputError: there is no such layer.
        """
        if not 1 <= index <= len(self.record_format.layers):
            raise InputError(f"there is no layer {index}: choose one of 1 to {len(self.record_format.layers)}")
        return np.array(self.record_format.split(self.records["filters"])[index - 1], np.float32)

    @property
    def features(self) -> Floats:
        """Root mean square of each input of the classifier, over the samples of a group [T, F]."""
        return self._values("features")

    @property
    def logits(self) -> dict[str, Floats]:
        """Statistics of the logits, each a mean over the samples of a group: `norm` (2-norm), `mean`, `max` and
        `variance` over the classes [T]."""
        return {name: self._values(f"logit_{name}") for name in LOGITS}

    @property
    def gradient_norm(self) -> Floats:
        """2-norm of all gradients together, before the method's transforms [T]."""
        return self._values("gradient_norm")

    @property
    def gradient_norm_after(self) -> Floats:
        """2-norm of all gradients together, after the method's transforms [T]."""
        return self._values("gradient_norm_after")

    def _values(self, name: str) -> Floats:
        return np.array(self.records[name], np.float32)


def read_norms(folder: Path) -> Norms | None:
    """The norms in a run's folder; None if none were recorded. What a crash cut short is left out.

    Raises:
        InputError: `layers.json` is damaged, or the steps of `norms.bin` are in disorder.
    """
    record_format = read_format(folder / FOLDER)
    if record_format is None:
        return None
    norms = Norms(record_format, read_records(folder / FOLDER, record_format))
    if (np.diff(norms.steps) <= 0).any():
        path = folder / FOLDER / RECORDS
        raise InputError(f"the steps in {path} do not ascend: it is damaged; put it back, or delete {path.parent}")
    return norms


def zeroed_out(norms: Norms, record: int = -1) -> dict[int, int]:
    """Count the filters of each layer, by its index, that are zeroed out: their 2-norm is below `ZEROED_OUT`.

    Args:
        record: place of a record among the T; the last one by default.

    Raises:
        IndexError: there is no such record.
    """
    return norms.record_format.count_zeroed(norms.records["filters"][record])
