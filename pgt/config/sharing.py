"""The number of devices that can share a recipe's batch."""

from __future__ import annotations

from pgt.config.schema import Recipe
from pgt.core.errors import InputError

LEAST_SHARE = 64
"""The fewest images that a device is given if the recipe has no groups: with fewer, more devices make it slower."""


def fits(recipe: Recipe, world_size: int) -> bool:
    """Whether that many devices can train the recipe: each has the same number of whole groups."""
    parts = recipe.global_batch // recipe.local_batch if recipe.local_batch else recipe.global_batch
    return parts % world_size == 0


def check(recipe: Recipe, world_size: int) -> None:
    """Raises InputError, with the nearest numbers that do, unless so many devices can train the recipe."""
    if fits(recipe, world_size):
        return
    below = largest(recipe, world_size)
    above = next((n for n in range(world_size, recipe.global_batch + 1) if fits(recipe, n)), None)
    groups = f" in groups of recipe.local_batch={recipe.local_batch}" if recipe.local_batch else ""
    possible = f"{below} or {above}" if above else f"{below}"
    share, rest = divmod(recipe.global_batch, world_size)
    smaller = "" if rest else f"recipe.local_batch={share} (another recipe: batch-norm statistics over other groups)"
    raise InputError(
        f"{world_size} devices cannot share recipe.global_batch={recipe.global_batch}{groups}: "
        f"set trainer.devices to {possible} (torchrun, srun: start that many processes), "
        f"or {smaller if groups and smaller else 'change the batch'}"
    )


def largest(recipe: Recipe, available: int) -> int:
    """The largest number of devices, of those available, that can train the recipe."""
    return next(n for n in range(max(available, 1), 0, -1) if fits(recipe, n))


def sensible(recipe: Recipe, available: int) -> int:
    """The number of devices to take: the largest; if the recipe has no groups, with `LEAST_SHARE` images for each."""
    return largest(recipe, available if recipe.local_batch else min(available, recipe.global_batch // LEAST_SHARE))
