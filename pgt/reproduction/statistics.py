"""Means, intervals and verdicts over several seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, + for 0, and a true minus: `+0.12`, `−0.30`."""
    return _minus(f"{value:+z.{digits}f}")


def _minus(number: str) -> str:
    return number.replace("-", "−")


@dataclass(frozen=True)
class Sample:
    """Mean and sample deviation (n − 1) of n measurements; the deviation of a single one is NaN."""

    mean: float
    deviation: float
    n: int

    def __str__(self) -> str:
        return self._beside(f"{self.mean:.2f}")

    def signed(self) -> str:
        """The text of a difference: with its sign."""
        return self._beside(signed(self.mean))

    def _beside(self, mean: str) -> str:
        return f"{mean} (n=1)" if self.n == 1 else f"{mean} ± {self.deviation:.2f}"


def sample(values: Sequence[float]) -> Sample:
    """Mean and deviation of at least one value."""
    n, mean = len(values), fmean(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Sample(mean, math.sqrt(squares / (n - 1)) if n > 1 else math.nan, n)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Sample | None:
    """Differences to the baseline seed by seed, over the seeds that both have; None if there are none.

    Args:
        values, baseline: measurement by seed.
    """
    seeds = sorted(values.keys() & baseline.keys())
    return sample([values[seed] - baseline[seed] for seed in seeds]) if seeds else None


CONFIDENCE = 0.95
"""The confidence of an interval unless another is given, two-sided."""

POWER = 0.8
"""The power with which the stated number of seeds shows a published difference."""

MARGIN = 0.3
"""Points of accuracy within which a baseline counts as the published one. A published number is that of one run."""


@dataclass(frozen=True)
class Difference:
    """The measured difference of two settings.

    Attributes:
        mean: points.
        low, high: its confidence interval (Student's t); NaN if no deviation is known.
        deviation: that of the difference of one seed.
        n: number of pairs, or of the seeds of the side that has fewer.
        paired: whether seeds were paired; if not, the interval is Welch's.
    """

    mean: float
    low: float
    high: float
    deviation: float
    n: int
    paired: bool

    def __str__(self) -> str:
        how = f"{self.n} pair{'s' if self.n > 1 else ''}" if self.paired else f"n={self.n}, Welch"
        ends = "" if math.isnan(self.low) else _minus(f" [{self.low:z.2f}, {self.high:z.2f}]")
        return f"{signed(self.mean)}{ends} ({how})"


def interval(values: Sample, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The confidence interval of a mean (Student's t); NaN for a single measurement."""
    half = _half_width(values.deviation, values.n, confidence) if values.n > 1 else math.nan
    return values.mean - half, values.mean + half


def _half_width(deviation: float, n: int, confidence: float = CONFIDENCE) -> float:
    """Half of the confidence interval of the mean of n measurements."""
    return _quantile(n - 1, confidence) * deviation / math.sqrt(n)


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """The difference to the baseline with its interval: paired if two seeds or more pair, else Welch's.

    Args:
        values, baseline: measurement by seed.

    Returns:
        None if either side has no measurement.
    """
    if not values or not baseline:
        return None
    pairs = paired_difference(values, baseline)
    left, right = sample(list(values.values())), sample(list(baseline.values()))
    if pairs and (pairs.n >= 2 or min(left.n, right.n) == 1):
        return Difference(pairs.mean, *interval(pairs), pairs.deviation, pairs.n, paired=True)
    mean, n = left.mean - right.mean, min(left.n, right.n)
    if n < 2:
        return Difference(mean, math.nan, math.nan, math.nan, n, paired=False)
    a, b = left.deviation**2 / left.n, right.deviation**2 / right.n
    freedom = (a + b) ** 2 / (a**2 / (left.n - 1) + b**2 / (right.n - 1)) if a + b else left.n + right.n - 2
    half = _quantile(freedom) * math.sqrt(a + b)
    deviation = math.hypot(left.deviation, right.deviation)
    return Difference(mean, mean - half, mean + half, deviation, n, paired=False)


def seeds_needed(effect: float, deviation: float) -> int:
    """The number of pairs with which a paired t-test shows `effect` at `POWER` (two-sided, at 1 − `CONFIDENCE`).

    Args:
        effect: points, not zero.
        deviation: that of the difference of one pair, points.
    """
    from scipy.special import nctdtr

    def power(n: int) -> float:
        noncentral = abs(effect) / max(deviation, 1e-9) * math.sqrt(n)
        return 1.0 if noncentral > 30 else 1 - float(nctdtr(n - 1, noncentral, _quantile(n - 1)))

    return next((n for n in range(2, MANY) if power(n) >= POWER), MANY)


MANY = 1000
"""The number at which the search for enough seeds ends."""


def _quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The quantile of Student's t for a two-sided confidence."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_RUN = "reproduced", "not reproduced", "undecided", "not run"


@dataclass(frozen=True)
class Verdict:
    """Whether measurements confirm a published number.

    Attributes:
        name: `reproduced`, `not reproduced`, `undecided`, `not run`, or `diverged`.
        detail: stands in brackets after the name; empty for none.
        seeds: if undecided, how many are needed in all, on the baseline's side, too.
    """

    name: str
    detail: str = ""
    seeds: int | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


def undecided(seeds: int) -> Verdict:
    """The verdict that more seeds are needed: so many in all."""
    return Verdict(UNDECIDED, f"n > {MANY} needed" if seeds >= MANY else f"n = {seeds} needed", seeds)


def judge_difference(published: float, measured: Difference | None) -> Verdict:
    """Judge a method by its difference to the baseline.

    Reproduced: the interval lies on the published difference's side of zero; if it excludes the published size, the
    detail says so. Not reproduced: it does not, and the published difference lies beyond it. Else undecided, with the
    seeds that `seeds_needed` gives.

    Args:
        published: points, not zero.
        measured: None if the baseline has not been run.
    """
    if measured is None:
        return Verdict(UNDECIDED, "baseline not run", 2)
    if math.isnan(measured.low):
        return undecided(2)
    claim = abs(published)
    low, high = (measured.low, measured.high) if published >= 0 else (-measured.high, -measured.low)
    if low > 0:
        return Verdict(REPRODUCED, "smaller" if high < claim else "larger" if low > claim else "")
    if high < claim:
        return Verdict(NOT_REPRODUCED)
    return undecided(max(seeds_needed(published, measured.deviation), measured.n + 1))


def judge_accuracy(published: float, measured: Sample) -> Verdict:
    """Judge a baseline by its accuracy.

    Reproduced: the mean's interval lies within `MARGIN` of it (an equivalence test). Not reproduced: the interval lies
    wholly farther away. Else undecided, with the number of seeds that decides if mean and deviation stay the same.
    """
    if measured.n < 2:
        return undecided(2)
    low, high = interval(measured)
    if published - MARGIN <= low and high <= published + MARGIN:
        return Verdict(REPRODUCED)
    if high < published - MARGIN or low > published + MARGIN:
        return Verdict(NOT_REPRODUCED)
    room = abs(MARGIN - abs(measured.mean - published))
    return undecided(next((n for n in range(measured.n + 1, MANY) if _half_width(measured.deviation, n) <= room), MANY))
