"""Learning rate schedules, by the paper's text and by the authors' code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

Decay = Callable[[float], float]
"""Time in epochs -> learning rate after the warm-up."""

Schedule = Callable[[int], float]
"""Optimizer step (from 0) -> learning rate."""


@dataclass(frozen=True)
class Rates:
    """The learning rates of a schedule and the lengths of its parts.

    Attributes:
        start: learning rate at the beginning of the warm-up.
        peak: learning rate after the warm-up.
        end: learning rate at the end of the cosine.
        warmup_epochs: length of the linear warm-up.
        epochs: length of the whole training.
        cooldown_epochs: length of the last part, at the final learning rate (cosine only).
    """

    start: float
    peak: float
    end: float
    warmup_epochs: int
    epochs: int
    cooldown_epochs: int = 0

    def scaled(self, factor: float) -> Rates:
        """Multiply all learning rates by `factor`."""
        return replace(self, start=self.start * factor, peak=self.peak * factor, end=self.end * factor)


def cosine(time: float, rates: Rates, origin: float = 0.0) -> float:
    """Follow half a cosine from the peak, at time `origin`, to the end, when the cool-down begins."""
    length = rates.epochs - rates.cooldown_epochs - origin
    fraction = min(max((time - origin) / length, 0.0), 1.0)
    return rates.end + 0.5 * (rates.peak - rates.end) * (1 + math.cos(math.pi * fraction))


def step(time: float, rates: Rates, milestones: Sequence[int], factor: float) -> float:
    """Multiply the peak by `factor` at each milestone (in epochs)."""
    return rates.peak * factor ** sum(time >= milestone for milestone in milestones)


def paper_rule(rates: Rates, steps_per_epoch: int, decay: Decay) -> Schedule:
    """Set the rate at each step, as the paper says: a linear warm-up, then the decay."""

    def rate(index: int) -> float:
        time = index / steps_per_epoch
        if time < rates.warmup_epochs:
            return rates.start + (rates.peak - rates.start) * time / rates.warmup_epochs
        return decay(time)

    return rate


def authors_rule(rates: Rates, steps_per_epoch: int, decay: Decay) -> Schedule:
    """One rate an epoch, as in the authors' code, which looks one epoch ahead: epoch 0 uses time 0, epoch e >= 1 uses
    time e + 1."""

    def rate(index: int) -> float:
        epoch = index // steps_per_epoch
        time = epoch + 1 if epoch else 0
        if time < rates.warmup_epochs:
            return rates.start + (rates.peak - rates.start) * time / rates.warmup_epochs
        return decay(time)

    return rate


RULES = {"paper": paper_rule, "authors": authors_rule}


def build(
    name: str,
    rule: str,
    rates: Rates,
    steps_per_epoch: int,
    milestones: Sequence[int] = (),
    factor: float = 1.0,
) -> Schedule:
    """Make the schedule `cosine` or `step` under the rule `paper` or `authors`.

    The paper's cosine begins at its peak when the warm-up ends. The authors' begins at epoch 0: the warm-up replaces
    its first part.
    """
    if name == "cosine":
        decay = partial(cosine, rates=rates, origin=rates.warmup_epochs if rule == "paper" else 0)
    else:
        decay = partial(step, rates=rates, milestones=milestones, factor=factor)
    return RULES[rule](rates, steps_per_epoch, decay)
