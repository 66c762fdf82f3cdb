"""Learning rate schedules, by the paper's text and by the authors' code."""

from __future__ import annotations

import math

from pgt.config.schema import Cosine, Recipe, Step
from pgt.core.types import Schedule


def build(recipe: Recipe, decay: Cosine | Step, steps_per_epoch: int) -> Schedule:
    """Make the schedule: a linear warm-up, then half a cosine, or a factor at each milestone.

    By the paper (`lr_rule: paper`) the rate changes at each step, and the cosine begins at its peak when the warm-up
    ends. By the authors' code (`authors`) there is one rate an epoch, which looks one epoch ahead: epoch 0 uses time 0,
    epoch e >= 1 uses time e + 1; the cosine begins at epoch 0, and the warm-up replaces its first part.
    """
    authors = recipe.lr_rule == "authors"
    scale = recipe.global_batch / recipe.lr_reference_batch if recipe.lr_scaling == "linear" else 1.0
    start, peak, end = scale * recipe.lr_start, scale * recipe.lr_peak, scale * recipe.lr_end
    warmup = recipe.warmup_epochs
    origin = 0 if authors else warmup

    def decayed(time: float) -> float:
        if isinstance(decay, Step):
            return peak * decay.factor ** sum(time >= milestone for milestone in decay.milestones)
        length = recipe.epochs - recipe.cooldown_epochs - origin
        fraction = min(max((time - origin) / length, 0.0), 1.0)
        return end + 0.5 * (peak - end) * (1 + math.cos(math.pi * fraction))

    def rate(step: int) -> float:
        time = step / steps_per_epoch
        if authors:
            epoch = step // steps_per_epoch
            time = epoch + 1 if epoch else 0
        return start + (peak - start) * time / warmup if time < warmup else decayed(time)

    return rate
