"""The weight norms that a run records: the format of the files, and which filter counts as zeroed out. No torch.

`norms/norms.bin` holds records of one size, little-endian; `norms/layers.json` describes a record.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgt.core.errors import InputError
from pgt.core.files import writing

FOLDER, LAYERS, RECORDS = "norms", "layers.json", "norms.bin"

LOGITS = ("norm", "mean", "max", "variance")
"""Statistics of the logits in a record."""

ZEROED_OUT = 1e-3
"""A filter is zeroed out while the 2-norm of its weights is below this.

No norm reaches 0: without a gradient, weight decay λ shrinks a filter by e^(−λ·lr/(1−momentum)) a step. With the
paper's recipe at its peak learning rate, that is to a thousandth in 3500 steps (3 epochs), and to e^-125 over a whole
run. So a dead filter falls below any threshold; the threshold only moves the step at which it is called dead.

The threshold is absolute. A share of the layer's median would miss a layer that is zeroed out as a whole (Fig. 6), and
norms have a natural scale: Kaiming's fan-out initialisation gives sqrt(2·inputs/outputs), 0.3 to 5.7 in the networks
here, and 1e-3 is less than a hundredth of that. Batch norm makes the scale of a filter immaterial, but only as long as
the variance of its output is above batch norm's eps of 1e-5: for inputs of unit variance, down to a norm of 3e-3.
"""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A convolution.

    Attributes:
        index: from 1, in the order of the network's modules, including those that downsample.
        name: of the module.
        filters: number of its output channels.
    """

    index: int
    name: str
    filters: int


@dataclass(frozen=True)
class RecordFormat:
    """The format of the records of one network.

    Attributes:
        layers: all convolutions, in order.
        features: number of the classifier's inputs.
    """

    layers: tuple[Layer, ...]
    features: int

    @property
    def record(self) -> np.dtype[Any]:
        """One record: the step, then only float32 values."""
        scalars = ("gradient_norm", "gradient_norm_after", *(f"logit_{name}" for name in LOGITS))
        return np.dtype(
            [
                ("step", "<i8"),
                *((name, "<f4") for name in scalars),
                ("features", "<f4", (self.features,)),
                ("filters", "<f4", (sum(layer.filters for layer in self.layers),)),
            ]
        )

    def describe(self, norms_every: int) -> dict[str, Any]:
        """Return the content of `layers.json`."""
        return {
            "norms_every": norms_every,
            "features": self.features,
            "layers": [asdict(layer) for layer in self.layers],
            "record": self.record.descr,
        }

    def split(self, filters: Floats) -> list[Floats]:
        """Split the values [..., filters of all layers] into one array a layer."""
        ends = list(accumulate(layer.filters for layer in self.layers))
        return np.split(filters, ends[:-1], axis=-1)

    def count_zeroed(self, filters: Floats) -> dict[int, int]:
        """Count the zeroed-out filters of each layer, by the layer's index. A norm of NaN does not count.

        Args:
            filters: norms of the filters of all layers, in order.
        """
        parts = self.split(filters)
        return {
            layer.index: int(np.count_nonzero(part < ZEROED_OUT))
            for layer, part in zip(self.layers, parts, strict=True)
        }


class NormsFile:
    """Appends records to the `norms.bin` of a folder.

    Args:
        folder: exists already.
        record_format: of the records.
        step: only records of earlier steps are kept. A record that a crash cut short is dropped.
    """

    def __init__(self, folder: Path, record_format: RecordFormat, step: int = 0) -> None:
        kept = int(np.count_nonzero(read_records(folder, record_format)["step"] < step))
        self._path = folder / RECORDS
        self._file = self._path.open("ab")
        self._file.truncate(kept * record_format.record.itemsize)

    def write(self, step: int, values: Floats) -> None:
        """Append the record of a step.

        Args:
            values: the whole record without its step, flat.
        """
        with writing(self._path):
            self._file.write(np.array(step, "<i8").tobytes() + values.astype("<f4").tobytes())
            self._file.flush()

    def sync(self) -> None:
        """Put everything on the disk."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self._path):  # after a write that failed, closing tries again
            self._file.close()


def read_format(folder: Path) -> RecordFormat | None:
    """Read the format of the records in a folder; None if there is no `layers.json`.

    Raises:
        InputError: it is damaged.
    """
    path = folder / LAYERS
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        layers = tuple(Layer(int(item["index"]), str(item["name"]), int(item["filters"])) for item in values["layers"])
        found = RecordFormat(layers, int(values["features"]))
        if [layer.index for layer in layers] != list(range(1, len(layers) + 1)):
            raise ValueError("layers are numbered from 1")
        if json.loads(json.dumps(found.record.descr)) != values["record"]:
            raise ValueError("the description of the record does not fit the layers")
    except (KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise InputError(
            f"cannot read {path} ({kind}): it is damaged; put it back, or delete {folder} to do without its norms"
        ) from None
    return found


def read_records(folder: Path, record_format: RecordFormat) -> NDArray[Any]:
    """Map the records [T] of a folder into memory, without one at the end that a crash cut short."""
    path, kind = folder / RECORDS, record_format.record
    count = path.stat().st_size // kind.itemsize if path.is_file() else 0
    return np.memmap(path, kind, "r", shape=(count,)) if count else np.empty(0, kind)


def last_norms(folder: Path, step: int) -> dict[str, Floats]:
    """Read the filter norms of the last record up to a step, by layer (`01 conv1`, ...); empty if there is none.

    Raises:
        InputError: `layers.json` is damaged.
    """
    found = read_format(folder)
    if found is None:
        return {}
    records = read_records(folder, found)
    count = bisect_right(records["step"], step)  # reads a few of what may be gigabytes
    if not count:
        return {}
    parts = found.split(np.array(records[count - 1]["filters"]))
    return {f"{layer.index:02} {layer.name}": part for layer, part in zip(found.layers, parts, strict=True)}
