"""What all loaders share: how much there is, and the place in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgt.core.errors import InputError
from pgt.core.types import Batch
from pgt.data.reader import Reader
from pgt.data.sampler import Sampler

if TYPE_CHECKING:
    from torch import Tensor


class GroupLoader(ABC):
    """A `Loader` of the groups that a sampler makes."""

    def __init__(self, sampler: Sampler, num_classes: int) -> None:
        self.num_classes = num_classes
        self.num_samples = sampler.num_samples
        self.steps_per_epoch = sampler.steps_per_epoch
        self.groups_per_step = sampler.groups_per_step
        self.skipped: set[Path] = set()
        self.sampler = sampler
        self._place = (0, 0)
        self._turn = object()
        self._begin: dict[int, int] = {}

    @abstractmethod
    def groups(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from group `first` on."""

    def epoch(self, index: int) -> Iterator[Batch]:
        turn = self._turn = object()
        first = self._begin.pop(index, 0)
        batches = self.groups(index, first * self.groups_per_step)
        for step in range(first, self.steps_per_epoch):
            for left in reversed(range(self.groups_per_step)):
                if self._turn is not turn:
                    raise RuntimeError("this loader is closed, or reads another epoch: it reads one at a time")
                batch = next(batches)
                if not left:
                    self._place = index, step + 1
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place behind the last optimizer step all of whose batches were handed out."""
        epoch, step = self._place
        if step == self.steps_per_epoch:
            epoch, step = epoch + 1, 0
        return {"epoch": epoch, "step": step, "order": self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go there: the next `epoch(state["epoch"])` yields what was left of it, any other epoch all of it.

        Raises:
            InputError: no place, or a place in another order: another number of images, batch or seed. Another world
                size keeps the order.
        """
        try:
            epoch, step, order = int(state["epoch"]), int(state["step"]), state["order"]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"no place of a loader: {state}") from None
        if order != self._order():
            raise InputError(
                f"the data were left in another order ({order}; now {self._order()}): "
                "the number of images, the batch, or the seed has changed"
            )
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise InputError(f"no place of a loader of {self.steps_per_epoch} steps an epoch: {state}")
        self._place = epoch, step
        self._begin = {epoch: step}

    def close(self) -> None:
        self._turn = object()

    def _order(self) -> str:
        sampler = self.sampler
        return f"{sampler.num_samples} samples by {sampler.global_batch}, seed {sampler.seed}"


class FileLoader(GroupLoader):
    """A `GroupLoader` over image files, some of which may not be readable.

    Args:
        reader: of the split.
        sampler: which samples come when.
        skip: leave unreadable files out and remember them in `skipped`; else the first one stops the run.
    """

    def __init__(self, reader: Reader, sampler: Sampler, skip: bool) -> None:
        super().__init__(sampler, len(reader.files.classes))
        self.reader, self.skip = reader, skip

    def note(self, unreadable: Tensor) -> None:
        """Look through a batch's indices of unreadable files (−1: none), on the CPU.

        Raises:
            InputError: there is one, and files are not to be left out; or not the file is at fault but the disk.
        """
        for index in unreadable[unreadable >= 0].tolist():
            path = self.reader.files.path(index)
            if path not in self.skipped and not (self.skip and self.reader.is_bad(index)):
                raise self.reader.complaint(index)
            self.skipped.add(path)
