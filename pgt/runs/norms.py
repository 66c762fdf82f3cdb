"""The record of weight norms: how its files are laid out, and which filter counts as zeroed out. No torch.

`norms/norms.bin` is a row of records of one size, little-endian; `norms/layers.json` says what one holds.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgt.core.errors import InputError

FOLDER, LAYERS, RECORDS = "norms", "layers.json", "norms.bin"

LOGITS = ("norm", "mean", "max", "variance")

ZEROED_OUT = 1e-3
"""A filter is zeroed out while the 2-norm of its weights is below this.

No norm gets to 0: without a gradient, weight decay λ shrinks a filter by e^(−λ·lr/(1−momentum)) a step, with the
paper's recipe at its peak to a thousandth in 3500 steps (3 epochs), and to e^-125 over a whole run. So a dead filter
falls through any threshold, and where that lies changes little but when it is said to be dead.

The threshold is absolute. A share of the layer's median would miss the layer that zeroes out as a whole (Fig. 6), and
norms have a natural scale: Kaiming's fan-out initialisation gives sqrt(2·inputs/outputs), 0.3 to 5.7 in the networks
here, of which 1e-3 is less than a hundredth. Batch norm makes the scale of a filter immaterial, but only as long as the
variance of its output is above its eps of 1e-5, that is, for inputs of unit variance, down to a norm of 3e-3.
"""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A convolution.

    Attributes:
        index: from 1, in the order of the network's modules, downsampling ones included.
        name: of the module.
        filters: its output channels.
    """

    index: int
    name: str
    filters: int


@dataclass(frozen=True)
class Layout:
    """What a record holds.

    Attributes:
        layers: every convolution, in order.
        features: number of the classifier's inputs.
    """

    layers: tuple[Layer, ...]
    features: int

    @property
    def record(self) -> np.dtype[Any]:
        """One record: the step, then float32 values only."""
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
        """The content of `layers.json`."""
        return {
            "norms_every": norms_every,
            "features": self.features,
            "layers": [asdict(layer) for layer in self.layers],
            "record": self.record.descr,
        }

    def split(self, filters: Floats) -> list[Floats]:
        """The values [..., filters of all layers] layer by layer."""
        ends = list(accumulate(layer.filters for layer in self.layers))
        return np.split(filters, ends[:-1], axis=-1)


def count_zeroed(layout: Layout, filters: Floats) -> dict[int, int]:
    """How many filters of each layer are zeroed out, by the layer's index; a norm that is no number is not.

    Args:
        filters: norms of the filters of all layers, in order.
    """
    parts = layout.split(filters)
    return {
        layer.index: int(np.count_nonzero(part < ZEROED_OUT)) for layer, part in zip(layout.layers, parts, strict=True)
    }


def read_layout(folder: Path) -> Layout | None:
    """What the records in a folder hold; None where there is no `layers.json`.

    Raises:
        InputError: it is damaged.
    """
    path = folder / LAYERS
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        layers = tuple(Layer(int(item["index"]), str(item["name"]), int(item["filters"])) for item in values["layers"])
        layout = Layout(layers, int(values["features"]))
        if [layer.index for layer in layers] != list(range(1, len(layers) + 1)):
            raise ValueError("layers are numbered from 1")
        if json.loads(json.dumps(layout.record.descr)) != values["record"]:
            raise ValueError("the record is another one")
    except (KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise InputError(
            f"cannot read {path} ({kind}): it is damaged; put it back, or delete {folder} to do without its norms"
        ) from None
    return layout


def read_records(folder: Path, layout: Layout) -> NDArray[Any]:
    """The records [T] of a folder, not yet loaded into memory; a last one that a crash cut short is left out."""
    path, kind = folder / RECORDS, layout.record
    count = path.stat().st_size // kind.itemsize if path.is_file() else 0
    return np.memmap(path, kind, "r", shape=(count,)) if count else np.empty(0, kind)


def last_norms(folder: Path) -> dict[str, Floats]:
    """Name of each convolution, its index in front -> the norms of its filters in the last record; empty without one.

    Raises:
        InputError: `layers.json` is damaged.
    """
    layout = read_layout(folder)
    records = read_records(folder, layout) if layout else ()
    if layout is None or not len(records):
        return {}
    parts = layout.split(np.array(records[-1]["filters"]))
    return {f"{layer.index:02} {layer.name}": part for layer, part in zip(layout.layers, parts, strict=True)}


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
