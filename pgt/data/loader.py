"""The base of all loaders: their sizes, and the place in the data that a checkpoint keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from pgt.core.errors import InputError
from pgt.core.types import Batch
from pgt.data.reader import Reader, fatal
from pgt.data.sampler import Sampler


class GroupLoader(ABC):
    """A `Loader` of the groups that a sampler makes. Subclasses say how a group is read.

    A group is a micro-batch: the samples of one forward pass on one rank, which share batch-norm statistics.
    """

    def __init__(self, sampler: Sampler, num_classes: int) -> None:
        self.num_classes = num_classes
        self.num_samples = sampler.num_samples
        self.steps_per_epoch = sampler.steps_per_epoch
        self.groups_per_step = sampler.groups_per_step
        self.workers = 0
        self.skipped: set[Path] = set()
        self.sampler = sampler
        self._place = (0, 0)
        self._turn = object()  # identifies the running iterator; an older one must not go on
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
        """Return the place behind the last optimizer step whose batches have all been handed out."""
        epoch, step = self._place
        if step == self.steps_per_epoch:
            epoch, step = epoch + 1, 0
        return {"epoch": epoch, "step": step, "order": self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place: the next `epoch(state["epoch"])` yields the rest of that epoch, any other epoch all of it.

        Raises:
            InputError: the state is malformed, or belongs to another order: another number of images, batch or seed.
                The order does not depend on the world size.
        """
        try:
            epoch, step, order = int(state["epoch"]), int(state["step"]), state["order"]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"not the state of a loader: {state}") from None
        if order != self._order():
            raise InputError(
                f"the data were left in another order ({order}; now {self._order()}): "
                "the number of images, the batch, or the seed has changed"
            )
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise InputError(f"not the state of a loader of {self.steps_per_epoch} steps an epoch: {state}")
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
        reader: reads the files of the split.
        sampler: decides which samples come when.
        workers: threads or processes that decode.
        skip: leave unreadable files out and remember them in `skipped`, relative to the root; otherwise the first one
            stops the run.
    """

    def __init__(self, reader: Reader, sampler: Sampler, workers: int, skip: bool) -> None:
        super().__init__(sampler, len(reader.files.classes))
        self.reader, self.workers, self.skip = reader, workers, skip

    def note(self, unreadable: Tensor) -> None:
        """Remember the unreadable files of a batch.

        Args:
            unreadable: their indices, on the CPU; −1 for a sample that could be read, `fatal` of an index as in
                `Sample`.

        Raises:
            InputError: a file is unreadable and stops the run, or the disk and not the file is at fault.
        """
        if len(stops := unreadable[unreadable < -1]):
            raise self.reader.complaint(fatal(int(stops[0])), row=self.reader.replace)
        for index in unreadable[unreadable >= 0].tolist():
            place = self.reader.files.path(index).relative_to(self.reader.files.folder.parent)
            if not self.skip or (place not in self.skipped and not self.reader.is_bad(index)):
                raise self.reader.complaint(index)
            self.skipped.add(place)
