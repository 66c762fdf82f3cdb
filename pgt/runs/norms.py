"""The weight norms that a run records (`record.norms_every`), written and read back. No torch.

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
    """A convolution. Its index is its position among the network's modules, from 1, including those that downsample.

    Attributes:
        name: of the module.
        filters: number of its output channels.
    """

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
            "layers": [{"index": index, **asdict(layer)} for index, layer in enumerate(self.layers, start=1)],
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
        return {
            index: int(np.count_nonzero(part < ZEROED_OUT)) for index, part in enumerate(self.split(filters), start=1)
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
        layers = tuple(Layer(str(item["name"]), int(item["filters"])) for item in values["layers"])
        found = RecordFormat(layers, int(values["features"]))
        if json.loads(json.dumps(found.describe(values["norms_every"]))) != values:
            raise ValueError("the description does not agree with itself")
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

    Args:
        folder: `norms/` of a run.

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
    names = [f"{index:02} {layer.name}" for index, layer in enumerate(found.layers, start=1)]
    return dict(zip(names, found.split(np.array(records[count - 1]["filters"])), strict=True))


@dataclass(frozen=True)
class Norms:
    """The records of T steps, of the weights before each step's update. Values are read when asked for."""

    record_format: RecordFormat
    records: NDArray[Any]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every convolution, in the order of the network's modules."""
        return self.record_format.layers

    @property
    def steps(self) -> NDArray[np.int64]:
        """Optimizer steps from 0, ascending [T]."""
        return np.array(self.records["step"], np.int64)

    def filters(self, index: int) -> Floats:
        """2-norm of each filter of layer `index` (from 1) [T, filters].

        Raises:
            InputError: there is no such layer.
        """
        if not 1 <= index <= len(self.layers):
            raise InputError(f"there is no layer {index}: choose one of 1 to {len(self.layers)}")
        return np.array(self.record_format.split(self.records["filters"])[index - 1], np.float32)

    @property
    def features(self) -> Floats:
        """Root mean square of each input of the classifier, over the samples of a group [T, F]."""
        return np.array(self.records["features"])

    @property
    def logits(self) -> dict[str, Floats]:
        """Statistics of the logits, each a mean over the samples of a group: `norm` (2-norm), `mean`, `max` and
        `variance` over the classes [T]."""
        return {name: np.array(self.records[f"logit_{name}"]) for name in LOGITS}

    @property
    def gradient_norm(self) -> Floats:
        """2-norm of all gradients together, before the method's transforms [T]."""
        return np.array(self.records["gradient_norm"])

    @property
    def gradient_norm_after(self) -> Floats:
        """2-norm of all gradients together, after the method's transforms [T]."""
        return np.array(self.records["gradient_norm_after"])

    def zeroed_out(self, record: int = -1) -> dict[int, int]:
        """Count the filters of each layer, by its index, that are zeroed out: their 2-norm is below `ZEROED_OUT`.

        Args:
            record: place of a record among the T; the last one by default.

        Raises:
            IndexError: there is no such record.
        """
        return self.record_format.count_zeroed(self.records["filters"][record])


def read_norms(run: Path) -> Norms | None:
    """Read the norms in a run's folder; None if none were recorded. What a crash cut short is left out.

    Raises:
        InputError: `layers.json` is damaged, or the steps of `norms.bin` are in disorder.
    """
    folder = run / FOLDER
    found = read_format(folder)
    if found is None:
        return None
    norms = Norms(found, read_records(folder, found))
    if (np.diff(norms.steps) <= 0).any():
        raise InputError(
            f"the steps in {folder / RECORDS} do not ascend: it is damaged; put it back, or delete {folder}"
        )
    return norms
