"""Recording norms of weights, features, logits and gradients at some of the steps, without stopping the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pgt.core.errors import InputError
from pgt.core.types import IGNORE_INDEX, NamedParameters, is_own
from pgt.models import classifiers
from pgt.runs.norms import Floats, Layer, RecordFormat
from pgt.training.evaluation import logit_statistics


def record_format(model: nn.Module) -> RecordFormat:
    """Describe the records of a network: its convolutions in order, and the number of features."""
    layers = tuple(Layer(name, module.out_channels) for name, module in _convolutions(model))
    return RecordFormat(layers, _classifier(model).in_features)


def _convolutions(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and is_own(name)]


def _classifier(model: nn.Module) -> nn.Linear:
    found = [model.get_submodule(name) for name in classifiers(model)[:1]]
    if not found or not isinstance(found[0], nn.Linear):
        raise InputError(
            "record.norms_every needs a linear classifier, whose inputs it records, and "
            f"{type(model).__name__} has none: set record.norms_every=0"
        )
    return found[0]


@torch.no_grad()
def filter_norms(model: nn.Module) -> Tensor:
    """Return the 2-norm of each filter of all convolutions of a network."""
    return _norms([module.weight for _, module in _convolutions(model)])


def _norms(weights: Iterable[Tensor]) -> Tensor:
    return torch.cat([torch.linalg.vector_norm(weight, dim=(1, 2, 3)) for weight in weights] or [torch.empty(0)])


class File(Protocol):
    """A file that takes the records in order."""

    def write(self, step: int, values: Floats) -> None: ...

    def sync(self) -> None: ...


class Recorder:
    """Gathers a record in one flat float32 tensor on the device, and writes it once it has been copied to the host.

    Nothing here waits for the device within a step. Create the recorder before the network's first forward pass, so
    that torch.compile sees the hook that it adds to the classifier.

    Args:
        model: the network itself, not its wrapper.
        every, last: steps divisible by `every` are recorded, and the step `last`.
        file: takes each step with its flat values (see `pgt.runs.norms.RecordFormat`).
    """

    def __init__(self, model: nn.Module, every: int, last: int, file: File) -> None:
        self.record_format = record_format(model)
        self._weights = [module.weight for _, module in _convolutions(model)]
        self._every, self._last, self._file = every, last, file
        self._features: Tensor | None = None
        self._gradient_norms: list[Tensor] = []
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()
        _classifier(model).register_forward_pre_hook(self._keep)

    def due(self, step: int) -> bool:
        """Return whether this step is recorded."""
        return step % self._every == 0 or step == self._last

    def gradients(self, parameters: NamedParameters) -> None:
        """Add the norm of all gradients to the record; called before and after the transforms of a step that is due."""
        self._gradient_norms.append(
            torch.nn.utils.get_total_norm([p.grad for _, p in parameters if p.grad is not None])
        )

    @torch.no_grad()
    def take(self, step: int, logits: Tensor, labels: Tensor) -> None:
        """Record a step, before the optimizer's update.

        Args:
            logits, labels: [N, C] and [N] of the step's last group; samples without a label do not count.
        """
        assert self._features is not None
        gradient_norms, self._gradient_norms = self._gradient_norms, []
        share = (labels != IGNORE_INDEX).double()
        share /= share.sum()
        parts = [*gradient_norms, share @ logit_statistics(logits), (share @ self._features.double().square()).sqrt()]
        self._send(step, torch.cat([part.reshape(-1).float() for part in (*parts, _norms(self._weights))]))
        self.drain(wait=False)

    def drain(self, wait: bool = True) -> None:
        """Write the records that have reached the host, or, if `wait`, wait for all of them."""
        while self._pending:
            step, values, event = self._pending[0]
            if event is not None and wait:
                event.synchronize()
            if event is not None and not event.query():
                return
            self._file.write(step, values.numpy())
            self._pending.popleft()

    def sync(self) -> None:
        """Write all records to the disk."""
        self.drain()
        self._file.sync()

    @torch.no_grad()
    def zeroed_out(self) -> dict[int, int]:
        """Count the filters of each layer, by its index, that are zeroed out now. Waits for the device."""
        return self.record_format.count_zeroed(_norms(self._weights).float().cpu().numpy())

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0].detach()

    def _send(self, step: int, values: Tensor) -> None:
        """Start the copy to the host."""
        event = None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            values, event = host, torch.cuda.Event()
            event.record()
        self._pending.append((step, values, event))
