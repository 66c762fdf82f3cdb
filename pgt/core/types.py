"""The contracts between the packages of pgt. Does not import torch: readers of image files import this module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.nn import Parameter

IGNORE_INDEX = -100
"""The label of a padded sample, which no loss and no metric counts."""

Record = Mapping[str, Any]
"""One line of `metrics.jsonl`: numbers, lists of numbers, and strings. Several warnings are joined into one string,
`warning`."""

BETWEEN_WARNINGS = "; "


@dataclass(frozen=True)
class Batch:
    """One group of samples on the training device.

    A group is a micro-batch: the samples of one forward pass on one rank, which share batch-norm statistics.

    Attributes:
        images: [N, 3, H, W], in the training precision and memory format.
        labels: [N] int64; `IGNORE_INDEX` for the padding of an evaluation batch.
    """

    images: Tensor
    labels: Tensor


class Loader(Protocol):
    """Delivers the batches of one split to one rank.

    Attributes:
        num_classes: number of classes of the data set.
        num_samples: number of distinct samples of the split over all ranks.
        steps_per_epoch: optimizer steps of an epoch, the same on every rank.
        groups_per_step: batches of one step; more than one if gradients are accumulated.
        workers: threads or processes that decode images for this rank; 0 if there are none.
        skipped: files left out so far because they could not be read.
    """

    num_classes: int
    num_samples: int
    steps_per_epoch: int
    groups_per_step: int
    workers: int
    skipped: set[Path]

    def epoch(self, index: int) -> Iterator[Batch]:
        """Yield the batches of epoch `index` (from 0), the same ones at each call. Reads one epoch at a time."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the place behind the last batch handed out: `epoch`, `step`, and the order that they count in."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place: the next `epoch(state["epoch"])` yields the rest of that epoch."""
        ...

    def close(self) -> None:
        """End the reader processes and free their memory."""
        ...


class Sink(Protocol):
    """Takes the records of a run, in order."""

    def write(self, step: int, record: Record) -> None: ...

    def close(self) -> None: ...


Loss = Callable[["Tensor", "Tensor"], "Tensor"]
"""(logits [N, C], target) -> scalar."""

NamedParameters = Sequence[tuple[str, "Parameter"]]

Schedule = Callable[[int], float]
"""Optimizer step (from 0) -> learning rate."""


BRANCHES, ADDED_BRANCHES = "gradient_branches", "added_branches"
"""Names of the children in which an alteration keeps modules that it adds to a network: `gradient_branches` leave its
forward pass unchanged, `added_branches` do not."""


def is_own(name: str) -> bool:
    """Whether a module or parameter of this name is the network's own, rather than one that an alteration added."""
    return name.partition(".")[0] not in (BRANCHES, ADDED_BRANCHES)


class Alteration:
    """Changes gradients inside the network, on the parameters, or both. Subclasses override what they need.

    The trainer calls the alterations of a config's `method.transforms` in the order of that list. None but
    `end_epoch` and the two methods for checkpoints may wait for the device. With several ranks, each rank has its own,
    created after the same seed, and sees the same gradients.
    """

    def attach(self, model: nn.Module, schedule: Schedule) -> None:
        """Add hooks or modules to a network, once, on its device and before DDP, torch.compile and the optimizer.

        Args:
            model: the network; parameters that are added to it are trained with its own. See `BRANCHES`.
            schedule: gives the learning rate of each step.

        Raises:
            ValueError: the network lacks what the alteration needs; the text continues the sentence that begins with
                the alteration's key in the config.
        """

    def describe(self) -> str:
        """Return what a user should know when training starts, such as the layers that were chosen; or nothing."""
        return ""

    def __call__(self, parameters: NamedParameters, step: int) -> None:
        """Change `.grad` in place, after unscaling and the all-reduce and before the optimizer's step."""

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """End epoch `epoch` (from 0), after its evaluation; the result joins the epoch's record."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as tensors and plain types. The network's state has its own parameters."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state, after `attach`."""
