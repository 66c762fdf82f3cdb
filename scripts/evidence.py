"""Judges the claims E1 to E8 of docs/evidence.md by the rules stated there, from the runs in results/runs/tiny.

    python -m scripts.evidence --output results/tables/evidence.csv

prints a line for each measured number, and writes all of them unrounded.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pgt.core.files import write_text
from pgt.core.words import ranges
from pgt.reproduction.formats import data_table, render, table
from pgt.reproduction.groups import LAST, TRAIN
from pgt.reproduction.statistics import CONFIDENCE, Sample, interval, paired_difference, sample
from pgt.runs.folder import DIVERGED, FINISHED, read_epochs
from pgt.runs.frame import frame, records

HOLDS, FAILS, UNDECIDED, ROUGHLY, PARTLY, LEADS, TRAILS = (
    "holds", "fails", "undecided", "roughly", "partly", "leads", "does not lead",
)  # fmt: skip
CHANCE = 0.5
"""Percent: the accuracy that a diverged run counts as."""
SMALLEST = 0.2
"""Points: an effect whose interval lies wholly below this counts as none."""
LOGITS, LOSS, LOSS_ALPHA = "test_logit_norm", "test_loss", "test_loss_alpha"
"""Of the last epoch's evaluation: mean 2-norm of the logits, cross-entropy at the logits z and at α·z."""
HOOK = "authors_hook_fp16"
BEST = "agc+pgt"
"""The method that E6 and E7 claim to be the best."""
METHODS = {"baseline": 1.0, "gc": 1.0, "agc": 1.0, "pgt": 0.25, "gc+pgt": 0.25, BEST: 0.25}
"""The methods of E6 and E7, each with its α."""
RATE, RATES, NOBN_RATES = 0.1, (0.05, 0.1, 0.2), (0.0125, 0.025, 0.05, 0.1)
"""Peak learning rates: the usual one, those of E5, and those of the search for E6."""
ALPHAS, FOUR_COMPARISONS = (0.5, 0.25, 0.1, 0.05), 0.9875
"""PGT's α with batch norm, and the confidence of the intervals of those that no claim is about."""
THREE, FIVE, SEARCH = range(3), range(5), range(100, 101)
"""Seeds: of most claims, of E1 and E2, and of the search for E6."""

BySeed = Mapping[int, float]


class MissingError(Exception):
    """Runs that a claim needs are not finished."""


@dataclass(frozen=True)
class Setting:
    """The runs of one setting: `tiny/bn` or `tiny/nobn`, method, α and peak learning rate."""

    experiment: str
    method: str = "baseline"
    alpha: float = 1.0
    rate: float = RATE

    def __str__(self) -> str:
        method = self.method + (f" α={self.alpha:g}" if self.alpha != 1 else "")
        return f"{self.experiment} {method} lr_peak={self.rate:g}"


class Measured:
    """The values of finished and diverged runs.

    Args:
        runs: a frame of runs (see `pgt.runs.frame`).
    """

    def __init__(self, runs: pd.DataFrame) -> None:
        self._runs = runs[runs.status.isin([FINISHED, DIVERGED])]

    def __call__(self, setting: Setting, name: str, seeds: Iterable[int]) -> dict[int, float]:
        """A measured value of each seed's run.

        Raises:
            MissingError: runs are not finished.
        """
        runs = self._runs
        chosen = runs[
            (runs.experiment == setting.experiment)
            & (runs.method == setting.method)
            & (runs.alpha == setting.alpha)
            & (runs["recipe.lr_peak"] == setting.rate)
        ]
        by_seed = {run["seed"]: run for run in records(chosen)}
        if missing := [seed for seed in seeds if seed not in by_seed]:
            raise MissingError(f"{setting}: seed {ranges(missing)}")
        return {seed: _value(by_seed[seed], name) for seed in seeds}


def _value(run: Mapping[str, Any], name: str) -> float:
    if run["status"] == DIVERGED:
        return CHANCE if name in (TRAIN, LAST) else math.nan
    values = run if name in run else read_epochs(run["run"], run["epochs"])[-1]
    return float(values[name])


@dataclass(frozen=True)
class Number:
    """A measured number of a claim, or of what is only described.

    Attributes:
        confidence: of its interval.
    """

    claim: str
    what: str
    value: Sample
    verdict: str = ""
    confidence: float = CONFIDENCE

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.value, self.confidence)


def judged_gain(difference: Sample) -> str:
    """Judge a claim that a paired difference is above 0 (E1, E2, E5)."""
    low, high = interval(difference)
    return HOLDS if low > 0 else FAILS if high < SMALLEST else UNDECIDED


def judged_factor(off: Sequence[float], near: float, far: float, also: bool = True) -> str:
    """Judge a claim about factors by how far each is from its expected value, as a share of that.

    Args:
        near: it holds if no share is greater, and `also`.
        far: it fails if a share is greater.
    """
    if not all(share <= far for share in off):
        return FAILS
    return HOLDS if all(share <= near for share in off) and also else ROUGHLY


def judged_best(top1: Mapping[str, BySeed]) -> str:
    """Judge a claim that `BEST` is the best of several methods (E6, E7), by their test top-1 by seed."""
    means = {method: sample(list(values.values())).mean for method, values in top1.items()}
    first, second = sorted(means, key=lambda method: means[method], reverse=True)[:2]
    if first == BEST:
        return HOLDS if interval(_difference(top1[BEST], top1[second]))[0] > 0 else LEADS
    others = (_difference(values, top1[BEST]) for method, values in top1.items() if method != BEST)
    return FAILS if any(interval(other)[0] > 0 for other in others) else TRAILS


def judged_truncation(ratios: Iterable[float]) -> str:
    """Judge the claim that the published hook is not Eq. 9 (E8), by its logit norm over exact PGT's, seed by seed."""
    found = list(ratios)
    return HOLDS if all(ratio < 0.5 for ratio in found) else FAILS if all(ratio > 0.9 for ratio in found) else PARTLY


def best_rate(top1: Mapping[float, BySeed]) -> float:
    """The learning rate of the highest mean test top-1; of equal ones the smaller."""
    return max(sorted(top1), key=lambda rate: sample(list(top1[rate].values())).mean)


def _difference(values: BySeed, baseline: BySeed) -> Sample:
    found = paired_difference(values, baseline)
    assert found is not None  # both have the same seeds
    return found


def _ratio(values: BySeed, baseline: BySeed) -> Sample:
    return sample([values[seed] / baseline[seed] for seed in values])


def _mean(values: BySeed) -> Sample:
    return sample(list(values.values()))


def gain(claim: str, name: str, measured: Measured) -> list[Number]:
    """E1 and E2: PGT at α = 0.25 against the baseline with batch norm."""
    base, ours = (measured(setting, name, FIVE) for setting in (Setting("tiny/bn"), Setting("tiny/bn", "pgt", 0.25)))
    difference = _difference(ours, base)
    return [
        Number(claim, f"{name}, baseline", _mean(base)),
        Number(claim, f"{name}, α=0.25", _mean(ours)),
        Number(claim, "difference", difference, judged_gain(difference)),
    ]


def logit_norm(claim: str, measured: Measured) -> list[Number]:
    """E3: the logit norm grows by 1/α."""
    base = measured(Setting("tiny/bn"), LOGITS, THREE)
    ratios = {alpha: _ratio(measured(Setting("tiny/bn", "pgt", alpha), LOGITS, THREE), base)
              for alpha in ALPHAS}  # fmt: skip
    verdict = judged_factor([abs(alpha * ratio.mean - 1) for alpha, ratio in ratios.items()], 0.1, 0.25)
    return [
        Number(claim, "logit norm, baseline", _mean(base)),
        *(Number(claim, f"logit norm, times the baseline's, α={alpha:g}", ratio, verdict)
          for alpha, ratio in ratios.items()),
    ]  # fmt: skip


def honest_loss(claim: str, measured: Measured) -> list[Number]:
    """E4: the loss at α·z is near the baseline's, and the loss at z above it."""
    base = _mean(measured(Setting("tiny/bn"), LOSS, THREE))
    settings = [Setting("tiny/bn", "pgt", alpha) for alpha in ALPHAS]
    at_z, at_alpha = ([_mean(measured(setting, name, THREE)) for setting in settings] for name in (LOSS, LOSS_ALPHA))
    above = all(loss.mean > 1.05 * base.mean for loss in at_z)
    verdict = judged_factor([abs(loss.mean / base.mean - 1) for loss in at_alpha], 0.05, 0.1, above)
    return [
        Number(claim, "loss, baseline", base),
        *(Number(claim, f"loss at z, α={one.alpha:g}", loss) for one, loss in zip(settings, at_z, strict=True)),
        *(Number(claim, f"loss at α·z, α={one.alpha:g}", loss, verdict)
          for one, loss in zip(settings, at_alpha, strict=True)),
    ]  # fmt: skip


def more_than_a_rate(claim: str, measured: Measured) -> list[Number]:
    """E5: PGT at its best learning rate against the baseline at its own."""
    base, ours = (
        {rate: measured(Setting("tiny/bn", method, alpha, rate), LAST, THREE) for rate in RATES}
        for method, alpha in (("baseline", 1.0), ("pgt", 0.25))
    )
    difference = _difference(ours[best_rate(ours)], base[best_rate(base)])
    return [
        *(Number(claim, f"{LAST}, baseline, lr_peak={rate:g}", _mean(values)) for rate, values in base.items()),
        *(Number(claim, f"{LAST}, α=0.25, lr_peak={rate:g}", _mean(values)) for rate, values in ours.items()),
        Number(claim, f"difference, α=0.25 at {best_rate(ours):g} and baseline at {best_rate(base):g}", difference,
               judged_gain(difference)),
    ]  # fmt: skip


def searched(measured: Measured) -> dict[str, dict[float, dict[int, float]]]:
    """Test top-1 on the seed of the search, by method and learning rate."""
    return {
        method: {rate: measured(Setting("tiny/nobn", method, alpha, rate), LAST, SEARCH) for rate in NOBN_RATES}
        for method, alpha in METHODS.items()
    }


def best_method(claim: str, measured: Measured, shared: bool) -> list[Number]:
    """E6 and E7: the methods without batch norm, each at its own best learning rate, or all at the baseline's."""
    found = searched(measured)
    rates = {method: best_rate(found["baseline" if shared else method]) for method in METHODS}
    top1 = {method: measured(Setting("tiny/nobn", method, alpha, rates[method]), LAST, THREE)
            for method, alpha in METHODS.items()}  # fmt: skip
    means = [Number(claim, f"{LAST}, {method}, lr_peak={rates[method]:g}", _mean(top1[method])) for method in METHODS]
    others = [method for method in METHODS if method != BEST]
    differences = [Number(claim, f"difference, {BEST} and {method}", _difference(top1[BEST], top1[method]),
                          judged_best(top1)) for method in others]  # fmt: skip
    searches = [Number(claim, f"{LAST}, {method}, lr_peak={rate:g}, seed {SEARCH[0]}", _mean(values))
                for method, by_rate in found.items() for rate, values in by_rate.items()]  # fmt: skip
    return [*([] if shared else searches), *means, *differences]


def truncation(claim: str, measured: Measured) -> list[Number]:
    """E8: the published hook, emulated in fp16, against exact PGT."""
    found = []
    for alpha in (0.25, 0.05):
        hook, exact = Setting("tiny/bn", HOOK, alpha), Setting("tiny/bn", "pgt", alpha)
        top1 = _difference(measured(hook, LAST, THREE), measured(exact, LAST, THREE))
        norms, exact_norms = (measured(setting, LOGITS, THREE) for setting in (hook, exact))
        verdict = judged_truncation(norms[seed] / exact_norms[seed] for seed in norms) if alpha == 0.05 else ""
        found += [
            Number(claim, f"{LAST}, the hook's less exact PGT's, α={alpha:g}", top1),
            Number(claim, f"logit norm, the hook's over exact PGT's, α={alpha:g}", _ratio(norms, exact_norms), verdict),
        ]
    return found


def other_alphas(claim: str, measured: Measured) -> list[Number]:
    """Not a claim: the other values of α with batch norm against the baseline."""
    return [
        Number(claim, f"{name}, α={alpha:g} less baseline", _difference(
            measured(Setting("tiny/bn", "pgt", alpha), name, THREE), measured(Setting("tiny/bn"), name, THREE)),
            confidence=FOUR_COMPARISONS)
        for name in (TRAIN, LAST) for alpha in ALPHAS if alpha != 0.25
    ]  # fmt: skip


CLAIMS: Mapping[str, Callable[[str, Measured], list[Number]]] = {
    "E1": lambda claim, measured: gain(claim, LAST, measured),
    "E2": lambda claim, measured: gain(claim, TRAIN, measured),
    "E3": logit_norm,
    "E4": honest_loss,
    "E5": more_than_a_rate,
    "E6": lambda claim, measured: best_method(claim, measured, shared=False),
    "E7": lambda claim, measured: best_method(claim, measured, shared=True),
    "E8": truncation,
    "other α": other_alphas,
}


def judge(runs: pd.DataFrame) -> tuple[list[Number], dict[str, str]]:
    """Judge every claim.

    Returns:
        The numbers of the claims whose runs are finished, and of each other claim the first setting that is not.
    """
    measured, numbers, missing = Measured(runs), list[Number](), dict[str, str]()
    for claim, judged in CLAIMS.items():
        try:
            numbers += judged(claim, measured)
        except MissingError as error:
            missing[claim] = str(error)
    return numbers, missing


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="folder of runs (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    options = parser.parse_args(arguments)
    numbers, missing = judge(frame(options.runs, "tiny"))
    columns = (
        ("Claim", lambda one: one.claim),
        ("What", lambda one: one.what),
        ("Value", lambda one: str(one.value)),
        ("Interval", lambda one: "" if one.value.n == 1 else "{:.2f} to {:.2f}".format(*one.interval)),
        ("Confidence %", lambda one: f"{100 * one.confidence:g}"),
        ("n", lambda one: str(one.value.n)),
        ("Verdict", lambda one: one.verdict),
    )
    print(render([table(numbers, columns)], "markdown"))
    for claim, what in missing.items():
        print(f"{claim}: not measured; not finished: {what}")
    if options.output and numbers:
        write_text(options.output, render([data_table(list(map(_data, numbers)))], "csv"))


def _data(number: Number) -> dict[str, object]:
    low, high = number.interval
    return {
        "claim": number.claim,
        "what": number.what,
        "mean": number.value.mean,
        "deviation": number.value.deviation,
        "low": low,
        "high": high,
        "confidence": number.confidence,
        "n": number.value.n,
        "verdict": number.verdict,
    }


if __name__ == "__main__":
    main()
