"""GC-W: predicts an offset for the weight gradients of the layers before a stage changes, and learns it from the
directions that training has taken.

Source: "Gradient Correction beyond Gradient Descent", arXiv 2203.08345, which its authors withdrew because it describes
the module unclearly. docs/correction.md tells what the source states and what is chosen here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pgt.core.types import Alteration, NamedParameters, Schedule
from pgt.methods.stages import find_stages

ENTRIES = RATIO, BEFORE, AFTER, LOSS = (
    "gcw_relative_norm",
    "gcw_cosine_gradient",
    "gcw_cosine_corrected",
    "gcw_fit_loss",
)
"""What GC-W adds to an epoch's record, each a mean over its layers: ‖ΔG‖/‖G‖; the cosines of G and of G + ΔG with the
direction that training took, before the fit to it; the loss of the fit."""


class Predictor(nn.Module):
    """One attention head over the output channels of a layer, whose output projection is zero at first.

    It has no biases, so that it is odd: the offset of −G is minus the offset of G.

    Args:
        features: entries of a token, which is the gradient of one filter.
        width: entries of a query, key and value.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(features, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, features, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [..., O, features] to offsets of the same shape."""
        scores = self.query(tokens) @ self.key(tokens).mT / self.query.out_features**0.5
        offsets: Tensor = self.out(scores.softmax(-1) @ self.value(tokens))
        return offsets


def correct(predictor: nn.Module, gradient: Tensor, rho: float) -> Tensor:
    """Predict the offset ΔG of a layer's gradient G; ‖ΔG‖ ≤ ρ‖G‖.

    Args:
        predictor: maps G over its root mean square to ΔG over the same.
        gradient: G: [..., O, features].
        rho: ρ; below 1, the angle between G and G + ΔG stays below 90°.
    """
    tiny = torch.finfo(gradient.dtype).tiny
    scale = gradient.square().mean((-2, -1), keepdim=True).sqrt()
    tokens = gradient / scale.clamp(min=tiny)
    offset = predictor(tokens)
    limit = rho * _norm(tokens)
    bounded: Tensor = offset * (limit / torch.maximum(_norm(offset), limit).clamp(min=tiny))
    return bounded * scale


class Memory:
    """The last snapshots of a layer: the gradient, and the direction D that training took from there.

    Attributes:
        gradients: G of each snapshot: [history, O, features].
        directions: D of each snapshot. The newest one is incomplete until `complete` is called.
    """

    def __init__(self, weight: nn.Parameter, target: str, history: int) -> None:
        self._weight, self._target = weight, target
        shape = (history, *weight.flatten(1).shape)
        self.gradients = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.directions = torch.zeros_like(self.gradients)

    def begin(self, entry: int) -> None:
        """Take a snapshot of the gradient and, if the direction is that of the weights, of the weights."""
        self.gradients[entry] = self._gradient()
        self.directions[entry] = self._weight.detach().flatten(1) if self._target == "weights" else 0.0

    def follow(self, entry: int, rate: float) -> None:
        """Add the gradient of a later step, of this learning rate, if the direction is that of the gradients."""
        if self._target == "gradients":
            self.directions[entry].add_(self._gradient(), alpha=rate)

    def complete(self, entry: int, rates: float) -> None:
        """End the direction of a snapshot.

        Args:
            rates: sum of the learning rates of the steps that it covers; 0 if nothing has moved.
        """
        if self._target == "weights":
            self.directions[entry].sub_(self._weight.detach().flatten(1))
        self.directions[entry].div_(rates or 1.0)

    def _gradient(self) -> Tensor:
        """Return the gradient as tokens; zero if it is not finite, as in steps that the gradient scaler skips."""
        assert self._weight.grad is not None
        gradient = self._weight.grad.flatten(1)
        return torch.where(torch.isfinite(_norm(gradient)), gradient, 0.0)


class WeightCorrection(Alteration):
    """GC-W: G ← G + ΔG, for the weight gradient G of each chosen layer.

    ΔG comes from a `Predictor`, one for all layers whose filters have the same number of weights. Every K steps a
    snapshot of each layer is taken; K steps later, the direction D that training has taken from there is known, and the
    predictors take some steps of Adam that bring G + ΔG closer to D over the last snapshots. Their input is detached:
    the network is not trained by the fit. Everything is computed outside autocast, in the precision of the weights,
    which is float32 under AMP.

    All ranks have the same predictors: made after the same seed, fitted to the same gradients.

    Args:
        rho: ρ in [0, 1), the largest ‖ΔG‖/‖G‖.
        every: K, steps between two snapshots, and between two fits; 2 or more.
        history: snapshots that are kept, and that each fit uses.
        width: entries of a query, key and value of a predictor.
        target: D of a snapshot at step t. `weights`: (W_t − W_{t+K})/Σ lr, whatever moved the weights. `gradients`:
            Σ lr·G/Σ lr over the steps between t and t + K, the way of plain descent without corrections; G_t has no
            part in it.
        fit: `direction` maximises the cosine of G + ΔG with D over a layer; `vector` minimises ‖G + ΔG − D‖²/‖D‖².
        fit_steps: steps of Adam a fit.
        fit_lr: their learning rate.
        layers: names of the layers; None: the last convolution of each stage (see `pgt.methods.stages`).
    """

    def __init__(
        self,
        *,
        rho: float,
        every: int,
        history: int,
        width: int,
        target: str,
        fit: str,
        fit_steps: int,
        fit_lr: float,
        layers: Sequence[str] | None = None,
    ) -> None:
        self.rho, self.every, self.history, self.width = rho, every, history, width
        self.target, self.fit, self.fit_steps, self.fit_lr = target, fit, fit_steps, fit_lr
        self.layers = list(layers or [])

    def attach(self, model: nn.Module, schedule: Schedule) -> None:
        """Choose the layers and make their predictors.

        Raises:
            ValueError: the network has no stages, no layer of such a name, or one without a trainable weight.
        """
        self.schedule = schedule
        self.layers = self.layers or [stage.convolution for stage in find_stages(model)]
        parameters = dict(model.named_parameters())
        for name in self.layers:
            weight = parameters.get(f"{name}.weight")
            if weight is None or weight.ndim < 2 or not weight.requires_grad:
                raise ValueError(f"names {name}, which is no layer of the network that has trainable filters")
        self.weights = [parameters[f"{name}.weight"] for name in self.layers]
        sizes = sorted({weight[0].numel() for weight in self.weights})
        with torch.random.fork_rng(devices=[]):  # the network's random numbers stay what they are without GC-W
            made = nn.ModuleDict({str(size): Predictor(size, self.width) for size in sizes})
        self.predictors = made.to(self.weights[0].device, self.weights[0].dtype)
        self.optimizer = torch.optim.Adam(self.predictors.parameters(), lr=self.fit_lr)
        self.memories = [Memory(weight, self.target, self.history) for weight in self.weights]
        self._sums = torch.zeros(len(ENTRIES), 2, dtype=torch.float64, device=self.weights[0].device)

    def describe(self) -> str:
        return f"GC-W corrects the weight gradients of {', '.join(self.layers)}"

    def __call__(self, parameters: NamedParameters, step: int) -> None:
        snapshot, since = divmod(step, self.every)
        if since == 0:
            if snapshot:
                self._learn(snapshot)
            for memory in self.memories:
                memory.begin(snapshot % self.history)
        else:
            for memory in self.memories:
                memory.follow(snapshot % self.history, self.schedule(step))
        ratios = []
        with torch.no_grad():
            for weight in self.weights:
                assert weight.grad is not None
                gradient = weight.grad.flatten(1)
                offset = correct(self._predictor(weight), gradient, self.rho)
                ratios.append(_norm(offset) / _norm(gradient))
                weight.grad.add_(offset.view_as(weight.grad))
            self._note(RATIO, ratios)

    def _predictor(self, weight: Tensor) -> nn.Module:
        return self.predictors[str(weight[0].numel())]

    def _learn(self, snapshot: int) -> None:
        """Complete the direction of the snapshot before this one, measure the correction by it, and fit to all.

        Args:
            snapshot: number of the snapshot that is due, from 1.
        """
        newest, known = (snapshot - 1) % self.history, min(snapshot, self.history)
        covered = range((snapshot - 1) * self.every + (self.target == "gradients"), snapshot * self.every)
        for memory in self.memories:
            memory.complete(newest, sum(map(self.schedule, covered)))
        with torch.no_grad():  # before the fit has seen it
            pairs = [self._corrected(index, slice(newest, newest + 1)) for index in range(len(self.weights))]
            self._note(BEFORE, [_cosine(gradient, direction) for gradient, _, direction in pairs])
            self._note(AFTER, [_cosine(corrected, direction) for _, corrected, direction in pairs])
        for _ in range(self.fit_steps):
            losses = [self._loss(*self._corrected(index, slice(known))) for index in range(len(self.weights))]
            self.optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            self.optimizer.step()
            self._note(LOSS, [loss.detach() for loss in losses])

    def _corrected(self, index: int, entries: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return G, G + ΔG and D of some entries of a layer."""
        memory = self.memories[index]
        gradient, direction = memory.gradients[entries], memory.directions[entries]
        return gradient, gradient + correct(self._predictor(self.weights[index]), gradient, self.rho), direction

    def _loss(self, gradient: Tensor, corrected: Tensor, direction: Tensor) -> Tensor:
        """Return the mean loss over the entries of a layer that have a gradient and a direction."""
        if self.fit == "direction":
            losses = 1 - _cosine(corrected, direction)
        else:
            length = _norm(direction)
            losses = (_norm(corrected - direction) / torch.where(length > 0, length, 1.0)).square()  # 0·inf is NaN
        counted = (_norm(gradient) > 0) & (_norm(direction) > 0)
        return torch.where(counted, losses, 0.0).sum() / counted.sum().clamp(min=1)

    def _note(self, entry: str, values: Iterable[Tensor]) -> None:
        """Add the values of the layers to the epoch's mean of an entry, except for those that are not finite."""
        found = torch.stack([value.reshape(()) for value in values]).double()
        finite = torch.isfinite(found)
        self._sums[ENTRIES.index(entry)] += torch.stack([torch.where(finite, found, 0.0).sum(), finite.sum()])

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        sums = self._sums.tolist()
        self._sums.zero_()
        return {entry: total / count for entry, (total, count) in zip(ENTRIES, sums, strict=True) if count}

    def state_dict(self) -> dict[str, Any]:
        return {
            "predictors": self.predictors.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memories": [[memory.gradients, memory.directions] for memory in self.memories],
            "sums": self._sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.predictors.load_state_dict(state["predictors"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._sums.copy_(state["sums"])
        for memory, (gradients, directions) in zip(self.memories, state["memories"], strict=True):
            memory.gradients.copy_(gradients)
            memory.directions.copy_(directions)


def _norm(x: Tensor) -> Tensor:
    """Return the 2-norm of the last two dimensions, which stay with one entry each."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return norm


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine between matrices, the last two dimensions; 0 if one of them is 0."""
    tiny = torch.finfo(a.dtype).tiny
    return (a * b).sum((-2, -1), keepdim=True) / (_norm(a) * _norm(b)).clamp(min=tiny)
