"""Judges the claims E1 to E8 of docs/evidence.md by the rules stated there, from the runs in results/runs/tiny.

    python -m scripts.evidence --output results/tables/evidence.csv

prints the measured numbers and the verdicts, and writes the numbers unrounded.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pgt.core.errors import InputError
from pgt.core.files import write_text
from pgt.core.words import ranges
from pgt.reproduction.formats import Column, data_table, render, table
from pgt.reproduction.groups import LAST, TRAIN, read_runs, varying
from pgt.reproduction.statistics import CONFIDENCE, Sample, interval, sample, signed
from pgt.runs.folder import DIVERGED, FINISHED
from pgt.runs.frame import config_names, records
from pgt.runs.labels import with_alpha

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
"""Peak learning rates: the usual one, those of E5, and those among which E6 chooses."""
ALPHAS, FOUR_COMPARISONS = (0.5, 0.25, 0.1, 0.05), 0.9875
"""PGT's values of α with batch norm; and 1 − 0.05/4, the confidence of each of four comparisons with one baseline."""
THREE, FIVE, SEARCH = range(3), range(5), range(100, 101)
"""Seeds of most claims; of E1 and E2; and of the runs that choose a learning rate for E6 and E7."""

BySeed = dict[int, float]


class MissingError(Exception):
    """Runs that a claim needs are not finished."""


@dataclass(frozen=True)
class Setting:
    """What the seeds of one measurement share: experiment (`tiny/bn` or `tiny/nobn`), method, α, peak learning rate."""

    experiment: str
    method: str = "baseline"
    alpha: float = 1.0
    rate: float = RATE

    def __str__(self) -> str:
        return f"{self.experiment} {with_alpha(self.method, self.alpha)} lr_peak={self.rate:g}"


@dataclass(frozen=True)
class Number:
    """A mean over seeds.

    Attributes:
        difference: whether it is one, which is printed with its sign.
        confidence: of its interval.
    """

    what: str
    value: Sample
    difference: bool = False
    confidence: float = CONFIDENCE

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.value, self.confidence)


@dataclass(frozen=True)
class Finding:
    """The numbers of a claim and the verdict; what is only described has no verdict."""

    numbers: Sequence[Number]
    verdict: str = ""


class Measured:
    """The values of finished and diverged runs.

    Args:
        runs: a frame of runs (see `pgt.runs.frame`).

    Raises:
        InputError: the runs of an experiment differ in more than method and learning rate.
    """

    def __init__(self, runs: pd.DataFrame) -> None:
        self._runs = runs[runs.status.isin([FINISHED, DIVERGED])]
        for experiment in ("tiny/bn", "tiny/nobn"):
            own = self._runs[self._runs.experiment == experiment]
            names = [name for name in config_names(own) if not name.startswith("method.") and name != "recipe.lr_peak"]
            if not own.empty and (mixed := varying(own, [*names, "manifest"])):
                raise InputError(f"the runs of {experiment} differ in {', '.join(mixed)}: keep those of one setting")

    def __call__(self, setting: Setting, name: str, seeds: Iterable[int]) -> BySeed:
        """A measured value of each seed's run.

        Raises:
            MissingError: runs are not finished.
            InputError: two different settings are described so.
        """
        runs = self._runs
        chosen = runs[
            (runs.experiment == setting.experiment)
            & (runs.method == setting.method)
            & (runs.alpha == setting.alpha)
            & (runs["recipe.lr_peak"] == setting.rate)
        ]
        if chosen.group_id.nunique() > 1:
            raise InputError(f"{setting} has runs of different options ({', '.join(chosen.group_id.unique())})")
        by_seed = {run["seed"]: run for run in records(chosen)}
        if missing := [seed for seed in seeds if seed not in by_seed]:
            raise MissingError(f"{setting}, seed {ranges(missing)}")
        return {seed: _value(by_seed[seed], name) for seed in seeds}


def _value(run: Mapping[str, Any], name: str) -> float:
    if run["status"] == DIVERGED:
        return CHANCE if name in (TRAIN, LAST) else math.nan
    return float(run[name])


def _mean(values: BySeed) -> Sample:
    return sample(list(values.values()))


def _difference(values: BySeed, others: BySeed) -> Sample:
    return sample([values[seed] - others[seed] for seed in values])


def _between(measured: Measured, name: str, setting: Setting, other: Setting) -> Sample:
    """The paired difference of two settings on three seeds."""
    return _difference(measured(setting, name, THREE), measured(other, name, THREE))


def _ratio(values: BySeed, others: BySeed) -> Sample:
    return sample([values[seed] / others[seed] for seed in values])


def judged_gain(difference: Sample) -> str:
    """Judge a claim that a paired difference is above 0 (E1, E2, E5). An effect below `SMALLEST` fails, too."""
    low, high = interval(difference)
    return FAILS if high < SMALLEST else HOLDS if low > 0 else UNDECIDED


def judged_errors(errors: Sequence[float], near: float, far: float, also: bool = True) -> str:
    """Judge a claim by relative errors |measured/expected − 1| (E3, E4); one is NaN if a run diverged.

    Args:
        near: it holds if all are at most this, and `also` is true.
        far: it fails if one is greater.
    """
    if any(map(math.isnan, errors)):
        return UNDECIDED
    if max(errors) > far:
        return FAILS
    return HOLDS if max(errors) <= near and also else ROUGHLY


def judged_best(top1: Mapping[str, BySeed]) -> str:
    """Judge a claim that `BEST` is the best of several methods (E6, E7), by their test top-1."""
    others = {method: values for method, values in top1.items() if method != BEST}
    second = max(_mean(values).mean for values in others.values())
    if _mean(top1[BEST]).mean >= second:
        seconds = [values for values in others.values() if _mean(values).mean == second]
        return HOLDS if all(interval(_difference(top1[BEST], values))[0] > 0 for values in seconds) else LEADS
    return FAILS if any(interval(_difference(values, top1[BEST]))[0] > 0 for values in others.values()) else TRAILS


def judged_truncation(ratios: Sequence[float]) -> str:
    """Judge the claim that the published hook is not Eq. 9 (E8), by its logit norm over exact PGT's, one a seed."""
    if any(map(math.isnan, ratios)):
        return UNDECIDED
    return HOLDS if max(ratios) < 0.5 else FAILS if min(ratios) > 0.9 else PARTLY


def best_rate(top1: Mapping[float, BySeed]) -> float:
    """The learning rate of the highest mean test top-1; of equal ones the smaller."""
    return max(sorted(top1), key=lambda rate: _mean(top1[rate]).mean)


def gain(name: str, measured: Measured) -> Finding:
    """E1 and E2: PGT at α = 0.25 against the baseline, with batch norm."""
    base, ours = (measured(setting, name, FIVE) for setting in (Setting("tiny/bn"), Setting("tiny/bn", "pgt", 0.25)))
    difference = _difference(ours, base)
    numbers = [
        Number(f"{name}, baseline", _mean(base)),
        Number(f"{name}, α=0.25", _mean(ours)),
        Number("difference", difference, difference=True),
    ]
    return Finding(numbers, judged_gain(difference))


def logit_norm(measured: Measured) -> Finding:
    """E3: the logit norm grows by 1/α."""
    base = measured(Setting("tiny/bn"), LOGITS, THREE)
    found = {alpha: _ratio(measured(Setting("tiny/bn", "pgt", alpha), LOGITS, THREE), base) for alpha in ALPHAS}
    ratios = [Number(f"logit norm over the baseline's, α={alpha:g}", ratio) for alpha, ratio in found.items()]
    verdict = judged_errors([abs(alpha * ratio.mean - 1) for alpha, ratio in found.items()], 0.1, 0.25)
    return Finding([Number("logit norm, baseline", _mean(base)), *ratios], verdict)


def honest_loss(measured: Measured) -> Finding:
    """E4: the loss at α·z is near the baseline's, and the loss at z above that."""
    base = _mean(measured(Setting("tiny/bn"), LOSS, THREE))
    at_z, at_alpha = (
        {alpha: _mean(measured(Setting("tiny/bn", "pgt", alpha), name, THREE)) for alpha in ALPHAS}
        for name in (LOSS, LOSS_ALPHA)
    )
    above = all(loss.mean > 1.05 * base.mean for loss in at_z.values())
    numbers = [
        Number("loss, baseline", base),
        *(Number(f"loss at z, α={alpha:g}", loss) for alpha, loss in at_z.items()),
        *(Number(f"loss at α·z, α={alpha:g}", loss) for alpha, loss in at_alpha.items()),
    ]
    errors = [abs(loss.mean / base.mean - 1) for loss in at_alpha.values()]
    return Finding(numbers, judged_errors(errors, 0.05, 0.1, above))


def more_than_a_rate(measured: Measured) -> Finding:
    """E5: PGT at its best learning rate against the baseline at the baseline's best."""
    base, ours = (
        {rate: measured(Setting("tiny/bn", method, alpha, rate), LAST, THREE) for rate in RATES}
        for method, alpha in (("baseline", 1.0), ("pgt", 0.25))
    )
    difference = _difference(ours[best_rate(ours)], base[best_rate(base)])
    what = f"difference, α=0.25 at {best_rate(ours):g} and baseline at {best_rate(base):g}"
    numbers = [
        *(Number(f"{LAST}, baseline, lr_peak={rate:g}", _mean(values)) for rate, values in base.items()),
        *(Number(f"{LAST}, α=0.25, lr_peak={rate:g}", _mean(values)) for rate, values in ours.items()),
        Number(what, difference, difference=True),
    ]
    return Finding(numbers, judged_gain(difference))


def best_method(shared: bool, measured: Measured) -> Finding:
    """E6 and E7: the methods without batch norm, each at its own best learning rate, or all at the baseline's."""

    def top1_at(method: str, rate: float, seeds: range) -> BySeed:
        return measured(Setting("tiny/nobn", method, METHODS[method], rate), LAST, seeds)

    searched = {
        method: {rate: top1_at(method, rate, SEARCH) for rate in NOBN_RATES}
        for method in (["baseline"] if shared else METHODS)
    }
    rates = {method: best_rate(searched["baseline" if shared else method]) for method in METHODS}
    top1 = {method: top1_at(method, rates[method], THREE) for method in METHODS}
    numbers = [
        *(Number(f"{LAST}, {method}, lr_peak={rate:g}, seed {SEARCH[0]}", _mean(values))
          for method, by_rate in searched.items() for rate, values in by_rate.items()),
        *(Number(f"{LAST}, {method}, lr_peak={rates[method]:g}", _mean(values)) for method, values in top1.items()),
        *(Number(f"{BEST} − {method}", _difference(top1[BEST], values), difference=True)
          for method, values in top1.items() if method != BEST),
        *(Number(f"baseline − {method}", _difference(top1["baseline"], values), difference=True)
          for method, values in top1.items() if method not in ("baseline", BEST)),
    ]  # fmt: skip
    return Finding(numbers, judged_best(top1))


def truncation(measured: Measured) -> Finding:
    """E8: the published hook, emulated in fp16, against exact PGT; described besides, against the baseline."""
    numbers, ratios = list[Number](), list[float]()
    for alpha in (0.25, 0.05):
        hook, exact = Setting("tiny/bn", HOOK, alpha), Setting("tiny/bn", "pgt", alpha)
        norms, exact_norms = (measured(setting, LOGITS, THREE) for setting in (hook, exact))
        ratios = [norms[seed] / exact_norms[seed] for seed in norms]  # the last α, 0.05, is judged
        numbers += [
            Number(f"logit norm, hook over exact PGT, α={alpha:g}", sample(ratios)),
            Number(f"loss at z, hook, α={alpha:g}", _mean(measured(hook, LOSS, THREE))),
            Number(f"loss at α·z, hook, α={alpha:g}", _mean(measured(hook, LOSS_ALPHA, THREE))),
            *(
                Number(f"{name}, hook − {what}, α={alpha:g}", _between(measured, name, hook, other), difference=True)
                for what, other in (("exact PGT", exact), ("baseline", Setting("tiny/bn")))
                for name in (LAST, TRAIN)
            ),
        ]
    return Finding(numbers, judged_truncation(ratios))


def other_alphas(measured: Measured) -> Finding:
    """Not a claim: the other values of α with batch norm against the baseline."""
    ours = {alpha: Setting("tiny/bn", "pgt", alpha) for alpha in ALPHAS if alpha != 0.25}
    return Finding([
        Number(f"{name}, α={alpha:g} − baseline", _between(measured, name, setting, Setting("tiny/bn")), True,
               FOUR_COMPARISONS)
        for name in (TRAIN, LAST) for alpha, setting in ours.items()
    ])  # fmt: skip


def other_rates(measured: Measured) -> Finding:
    """Not a claim: PGT at α = 0.25 against the baseline at each learning rate of E5, and the baseline at the best
    against PGT at the usual one."""
    base, ours = (
        {rate: Setting("tiny/bn", method, alpha, rate) for rate in RATES}
        for method, alpha in (("baseline", 1.0), ("pgt", 0.25))
    )
    pairs = {f"α=0.25 − baseline, both at {rate:g}": (ours[rate], base[rate]) for rate in RATES}
    across = {"baseline at 0.2 − α=0.25 at 0.1": (base[0.2], ours[RATE])}
    return Finding([
        Number(f"{name}, {what}", _between(measured, name, *pair), difference=True)
        for chosen in (pairs, across) for name in (TRAIN, LAST) for what, pair in chosen.items()
    ])  # fmt: skip


CLAIMS: Mapping[str, Callable[[Measured], Finding]] = {
    "E1": partial(gain, LAST),
    "E2": partial(gain, TRAIN),
    "E3": logit_norm,
    "E4": honest_loss,
    "E5": more_than_a_rate,
    "E6": partial(best_method, False),
    "E7": partial(best_method, True),
    "E8": truncation,
    "other α": other_alphas,
    "other rates": other_rates,
}


def judge(runs: pd.DataFrame) -> tuple[dict[str, Finding], dict[str, str]]:
    """Judge every claim.

    Returns:
        The findings on the claims whose runs are finished; and for every other claim, the first setting with runs that
        are not.

    Raises:
        InputError: runs of different settings are mixed.
    """
    measured, found, missing = Measured(runs), dict[str, Finding](), dict[str, str]()
    for claim, judged in CLAIMS.items():
        try:
            found[claim] = judged(measured)
        except MissingError as error:
            missing[claim] = str(error)
    return found, missing


Row = tuple[str, str, Number]
"""Claim, verdict, number."""

PRINTED: Sequence[Column[Row]] = (
    ("Claim", lambda row: row[0]),
    ("What", lambda row: row[2].what),
    ("Mean", lambda row: row[2].value.signed() if row[2].difference else str(row[2].value)),
    ("Interval", lambda row: _interval(row[2])),
    ("Confidence %", lambda row: "" if row[2].value.n == 1 else f"{100 * row[2].confidence:g}"),
    ("n", lambda row: str(row[2].value.n)),
)


def _interval(number: Number) -> str:
    """`−0.33 to +1.02` of a difference, `16.45 to 17.31` of another number; empty for a single run."""
    text = signed if number.difference else "{:.2f}".format
    return "" if number.value.n == 1 else " to ".join(map(text, number.interval))


def _data(row: Row) -> dict[str, object]:
    claim, verdict, number = row
    low, high = number.interval
    return {
        "claim": claim,
        "verdict_of_claim": verdict,
        "what": number.what,
        "mean": number.value.mean,
        "deviation": number.value.deviation,
        "low": low,
        "high": high,
        "confidence": number.confidence,
        "n": number.value.n,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="folder of runs (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    options = parser.parse_args(arguments)
    try:
        found, missing = judge(read_runs(options.runs, "tiny"))
    except InputError as error:
        parser.error(str(error))
    rows = [(claim, finding.verdict, number) for claim, finding in found.items() for number in finding.numbers]
    print(render([table(rows, PRINTED)], "markdown"))
    for claim, finding in found.items():
        print(f"{claim}: {finding.verdict}" if finding.verdict else f"{claim}: described, not judged")
    for claim, what in missing.items():
        print(f"{claim}: no verdict yet; to finish: {what}")
    if options.output:
        write_text(options.output, render([data_table(list(map(_data, rows)))], "csv"))


if __name__ == "__main__":
    main()
