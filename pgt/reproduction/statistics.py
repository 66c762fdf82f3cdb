"""What several seeds say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Mean and sample deviation (n − 1) of n measurements; the deviation of a single one is not a number."""

    mean: float
    deviation: float
    n: int

    def __str__(self) -> str:
        if self.n == 1:
            return f"{self.mean:.2f} (n=1)"
        return f"{self.mean:.2f} ± {self.deviation:.2f}"

    def signed(self) -> str:
        """With a sign, for differences."""
        return ("−" if round(self.mean, 2) < 0 else "+") + str(Sample(abs(self.mean), self.deviation, self.n))


def sample(values: Sequence[float]) -> Sample:
    """Mean and deviation of at least one value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Sample(mean, math.nan, 1)
    return Sample(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)), n)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Sample | None:
    """Differences to the baseline seed by seed, over the seeds that both have; None where there are none.

    Args:
        values, baseline: measurement by seed.
    """
    seeds = sorted(values.keys() & baseline.keys())
    return sample([values[seed] - baseline[seed] for seed in seeds]) if seeds else None
