"""Gradient amplification: the gradients of layers that fluctuate are multiplied by a factor in some epochs.

Source: "Intelligent gradient amplification for deep neural networks" (arXiv 2305.18445) and its predecessor "Gradient
Amplification" (arXiv 2006.10560). This is built from the abstract of the former, which states that layers are chosen by
two measures of gradient fluctuation and two thresholds, and that gradients are amplified in certain epochs only. It
gives no formula: measures, thresholds, the side of the threshold and all defaults are ours. See docs/amplification.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from pgt.core.types import Alteration, NamedParameters, Schedule, is_own


def cancellation(net: Tensor, gross: Tensor) -> Tensor:
    """Fluctuation of a layer as a whole over the steps t of an epoch.

        F = 1 − |Σ_t Σ_j g_tj| / Σ_t Σ_j |g_tj|

    F is 0 if all entries j of the gradient have one sign at all steps, and 1 if they cancel. Our reading of the source.

    Args:
        net: Σ_t g_t, of any shape: per weight, or summed over the weights j already.
        gross: Σ_t |g_t|, of the same shape; likewise.

    Returns:
        F in [0, 1], a scalar; 0 for a layer whose gradient was always 0.
    """
    return _cancelled(net.sum(), gross.sum())


def cancellation_per_weight(net: Tensor, gross: Tensor) -> Tensor:
    """Fluctuation of each weight j of a layer over the steps t of an epoch, averaged over the weights.

        F = 1 − mean_j(|Σ_t g_tj| / Σ_t |g_tj|)

    F is 0 if every weight is pulled the same way at all steps, and 1 if the pulls on each cancel. Our reading of the
    source.

    Args:
        net: Σ_t g_t, of the shape of the weights.
        gross: Σ_t |g_t|, of the same shape.

    Returns:
        F in [0, 1], a scalar; a weight whose gradient was always 0 counts as 0.
    """
    return _cancelled(net, gross).mean()


def _cancelled(net: Tensor, gross: Tensor) -> Tensor:
    return torch.where(gross > 0, 1 - net.abs() / gross, 0.0).clamp(min=0)  # below 0 by rounding


def normalised(values: Tensor) -> Tensor:
    """Map values [L] to [0, 1] by their minimum and maximum; all to 0 if they are equal."""
    low, high = values.aminmax()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def choose(fluctuation: Tensor, threshold: str, select: str) -> list[bool]:
    """Choose layers by their fluctuation.

    The threshold is taken over the layers' values after `normalised`, which changes no choice: mean and deviation shift
    and scale with the values.

    Args:
        fluctuation: F of each layer, [L].
        threshold: `mean`, or `mean_plus_std`, with the deviation over the L layers (not L − 1).
        select: `above` or `below` the threshold; a layer on it is not chosen.
    """
    values = normalised(fluctuation)
    limit = values.mean() + (values.std(correction=0) if threshold == "mean_plus_std" else 0)
    picked: list[bool] = (values > limit if select == "above" else values < limit).tolist()
    return picked


def draw(count: int, ratio: float, seed: int, epoch: int) -> list[bool]:
    """Draw a share of the layers, at least one: the choice of the predecessor, and a control for `choose`.

    It depends on nothing but its arguments, so every rank and every resumed run draws the same.

    Args:
        count: number of layers.
        ratio: the share, in [0, 1].
    """
    draw = random.Random(f"{seed} {epoch}")  # nosec B311  # no secret
    picked = draw.sample(range(count), max(1, round(ratio * count)))
    return [index in picked for index in range(count)]


MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cancellation": cancellation,
    "cancellation_per_weight": cancellation_per_weight,
}
"""The measures of fluctuation by the name that a config's `measure` gives: (net, gross) -> F."""

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (_ConvNd,),
    "linear": (nn.Linear,),
    "norm": (_BatchNorm, nn.GroupNorm, nn.LayerNorm),
}
"""The kinds of layers by the names that a config's `kinds` gives."""


class Amplification(Alteration):
    """Amplifies the gradients of the layers that fluctuated in the epoch before.

    At the end of an epoch F is computed for each layer that takes part, from the gradients of its weight: as they were
    when this alteration was called, so before the clipping of alterations that come later. A step in which one of these
    gradients is not finite does not count; the gradient scaler skips it. F does not depend on the layer's own factor,
    which is constant within an epoch. Nothing is known before the first epoch: it is never amplified.

    With `where="activations"` a hook multiplies the gradient of each chosen layer's output by the factor. So its own
    gradients grow, and those of every layer before it: by factor^k after k chosen layers in a chain. With
    `where="weights"` only the gradients of the chosen layers' own parameters are multiplied, when this alteration is
    called.

    Args:
        measure: one of `MEASURES`.
        threshold: `mean` or `mean_plus_std`, see `choose`.
        select: `above` or `below` the threshold, or `random`, which needs a ratio and ignores measure and threshold.
        ratio: share of the layers that `random` draws, from torch's initial seed.
        kinds: the layers that take part, by `KINDS`, if their weight is trained.
        where: `activations` or `weights`.
        factor: above 0.
        epochs: those with amplification, from 0, as [first, end) of each phase.
        refresh: epochs from one choice to the next; each phase begins with a choice.
    """

    def __init__(
        self,
        *,
        measure: str,
        threshold: str,
        select: str,
        ratio: float | None,
        kinds: Sequence[str],
        where: str,
        factor: float,
        epochs: Sequence[Sequence[int]],
        refresh: int,
    ) -> None:
        self.measure, self.threshold, self.select, self.ratio = MEASURES[measure], threshold, select, ratio
        self.kinds, self.where, self.factor, self.phases, self.refresh = kinds, where, factor, epochs, refresh
        self.whole = self.measure is cancellation  # then one number a layer is enough

    def attach(self, model: nn.Module, schedule: Schedule) -> None:
        types = tuple(kind for name in self.kinds for kind in KINDS[name])
        found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, types)]
        if self.where == "activations":  # nn.MultiheadAttention reads the weight of its out_proj and never calls it
            found = [(name, layer) for name, layer in found if not isinstance(layer, NonDynamicallyQuantizableLinear)]
        self.layers = {name: layer for name, layer in found if is_own(name) and _is_trained(layer)}
        if not self.layers:
            raise ValueError(
                f"finds no layer of the kinds {', '.join(self.kinds) or '(none)'} in the network: set kinds to some of "
                f"{', '.join(KINDS)}"
            )
        weights, count = self._weights(), len(self.layers)
        self.net = [weights[0].new_zeros(count, dtype=torch.float64)] if self.whole else _zeros_like(weights)
        self.gross = _zeros_like(self.net)
        self.choice: list[bool] | None = None
        self.factors = weights[0].new_ones(count)
        self.seed = torch.initial_seed()
        if self.where == "activations":
            for index, (layer, factor) in enumerate(zip(self.layers.values(), self.factors, strict=True)):
                layer.register_forward_hook(partial(self._amplify, index, factor))

    def _amplify(
        self, index: int, factor: Tensor, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> Tensor | None:
        """Forward hook of a layer: let the backward pass multiply the gradient of its output by a scalar on the device.

        A compiled network multiplies in every layer, by 1 if it is not chosen, so that a new choice compiles nothing.

        Returns:
            What takes the output's place in a compiled network; else None.
        """
        if torch.compiler.is_compiling():
            amplified: Tensor = _Amplified.apply(output, factor)
            return amplified
        if self.choice is not None and self.choice[index] and output.requires_grad:
            output.register_hook(lambda grad: grad * factor)
        return None

    @torch.no_grad()
    def __call__(self, parameters: NamedParameters, step: int) -> None:
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self._weights()]
        sums = torch.stack(torch._foreach_norm(grads, 1))
        good = sums.sum().isfinite()
        if self.whole:
            self.net[0] += torch.where(good, torch.stack([grad.sum() for grad in grads]), 0)
            self.gross[0] += torch.where(good, sums, 0)
        else:
            for grad, net, gross in zip(grads, self.net, self.gross, strict=True):
                counted = torch.where(good, grad, 0)
                net += counted
                gross += counted.abs_()
        if self.where == "weights" and self.choice is not None:
            layers = [layer for layer, picked in zip(self.layers.values(), self.choice, strict=True) if picked]
            own = {p: p.grad for layer in layers for p in layer.parameters(recurse=False) if p.grad is not None}
            if own:  # each once: layers may share a parameter
                torch._foreach_mul_(list(own.values()), self.factor)

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Record each layer's F and factor in this epoch, and choose for the next one. Waits for the device."""
        net, gross = (self.net[0], self.gross[0]) if self.whole else (self.net, self.gross)
        fluctuation = torch.stack([self.measure(*sums) for sums in zip(net, gross, strict=True)]).double().cpu()
        factors = self._factors()
        torch._foreach_zero_([*self.net, *self.gross])
        self._set(self._next(epoch + 1, fluctuation))
        return {
            **{f"fluctuation/{name}": value for name, value in zip(self.layers, fluctuation.tolist(), strict=True)},
            **{f"amplification/{name}": value for name, value in zip(self.layers, factors, strict=True)},
        }

    def _next(self, epoch: int, fluctuation: Tensor) -> list[bool] | None:
        """The choice for an epoch, given F of the epoch before it; None if it is in no phase."""
        begin = next((begin for begin, end in self.phases if begin <= epoch < end), None)
        if begin is None:
            return None
        if self.choice is not None and (epoch - begin) % self.refresh:
            return self.choice
        if self.ratio is not None:
            return draw(len(self.layers), self.ratio, self.seed, epoch)
        return choose(fluctuation, self.threshold, self.select)

    def _set(self, choice: list[bool] | None) -> None:
        self.choice = choice
        self.factors.copy_(torch.tensor(self._factors(), dtype=self.factors.dtype))

    def _factors(self) -> list[float]:
        picked = self.choice or [False] * len(self.layers)
        return [self.factor if amplified else 1.0 for amplified in picked]

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net, "gross": self.gross, "choice": self.choice}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self.net, state["net"])
        torch._foreach_copy_(self.gross, state["gross"])
        self._set(state["choice"])

    def _weights(self) -> list[Tensor]:
        return [layer.get_parameter("weight") for layer in self.layers.values()]


class _Amplified(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor, for compiled networks. The compiler removes the clone.

    Eager mode uses a tensor's hook, which needs none. torch 2.11 cannot compile a hook on a tensor that is later
    changed in place, as by a ReLU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        [factor] = ctx.saved_tensors
        return grad * factor, None


def _is_trained(layer: nn.Module) -> bool:
    return isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad


def _zeros_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(tensor) for tensor in tensors]
