"""The number of epochs to the best accuracy of the baseline, which gradient correction is said to lower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pgt.core.errors import InputError
from pgt.reproduction.groups import BEST, Group, by_seed
from pgt.reproduction.statistics import Sample, sample
from pgt.runs.folder import read_epochs

NOTE = (
    "Epochs to the baseline's best: the first epoch whose test top-1 is at least the best of the baseline's run of the "
    "same seed, and the runs that never come to it. Published: about 20% fewer epochs than the baseline "
    "(arXiv 2203.08345, withdrawn by its authors)."
)


def about_correction(groups: Sequence[Group]) -> bool:
    """Whether one of the groups trains with gradient correction."""
    return any({"gcw", "gcode"} & {*group.method.split("+")} for group in groups)


def epochs_needed(group: Group) -> tuple[Sample | None, int]:
    """Return mean and deviation of the epochs until a run reaches the best accuracy of the baseline's run of its seed.

    They are over the runs that reach it; the second value is the number of those that never do.

    A baseline that is compared with no other is compared with itself. A seed without a finished run on both sides does
    not count.

    Raises:
        InputError: the records of a run are damaged.
    """
    itself = group.method == "baseline" and group.baseline.empty
    bests = by_seed(group.runs if itself else group.baseline, BEST)
    found = [
        _first(Path(run), int(epochs), bests[seed])
        for seed, run, epochs in zip(group.finished.seed, group.finished.run, group.finished.epochs, strict=True)
        if seed in bests
    ]
    reached = [float(epoch) for epoch in found if epoch is not None]
    return sample(reached) if reached else None, len(found) - len(reached)


def cell(group: Group) -> str:
    """Mean and deviation, and the number of runs that never come to it: `8.50 ± 0.71, 1 never`.

    If the records of a run are damaged, it says so: the other columns do not need them.
    """
    try:
        value, never = epochs_needed(group)
    except InputError as error:
        return str(error)
    return ", ".join([*([str(value)] if value else []), *([f"{never} never"] if never else [])])


def _first(folder: Path, epochs: int, wanted: float) -> int | None:
    """Return the first epoch, from 1, with a test top-1 of at least `wanted`."""
    records = read_epochs(folder, epochs)
    return next((record["epoch"] + 1 for record in records if record.get("test_top1", -1.0) >= wanted), None)
