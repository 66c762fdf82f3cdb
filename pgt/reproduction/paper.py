"""The paper's tables beside what was measured: which runs fill which row, and the verdict on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pandas as pd

from pgt.config.identity import identity
from pgt.config.resources import read_conf
from pgt.config.schema import Model
from pgt.core.registry import HOOKS
from pgt.reproduction import published
from pgt.reproduction.groups import BEST, Comparison, farthest, finished, overrides, unlike
from pgt.reproduction.published import IMAGE_SIZE, Row
from pgt.reproduction.statistics import NOT_RUN, Verdict, judge_accuracy, judge_difference
from pgt.runs.folder import DIVERGED, FINISHED
from pgt.runs.frame import config_names, dotted
from pgt.runs.labels import as_pgt

EXACT, HOOK = "exact", HOOKS[0]

PRECISION = {"trainer.precision": "fp16", "trainer.loss_scale": 65536, "trainer.loss_scale_growth_interval": 2000}
"""The precision of every experiment of the tables. What the authors' hook computes depends on all of it."""

DECODER = "data.backend"
"""The decoder of images, which depends on the machine."""

TRANSFORMS = "method.transforms."
"""The prefix of the keys of GC's and AGC's thresholds. The paper does not publish these, so runs may differ in them."""


@dataclass(frozen=True)
class Arm:
    """One way to read a row: recipe of the paper's text or of the authors' commands; exact PGT (Eq. 9) or the authors'
    hook."""

    recipe: str
    implementation: str

    def __str__(self) -> str:
        return self.recipe if self.implementation == EXACT else f"{self.recipe}, authors' hook"


ARMS = tuple(Arm(recipe, implementation) for implementation in (EXACT, HOOK) for recipe in ("paper", "authors"))
"""All arms, in the order of their lines."""


@dataclass(frozen=True, eq=False)
class Line(Comparison):
    """The runs of a row, in one arm and one setting, beside those of the row's baseline.

    Attributes:
        setting: overrides that lead from the row's experiment to these runs; empty if there are none.
        first: whether it is the first line of its row.
    """

    row: Row
    arm: Arm
    setting: str
    first: bool

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict by the best epoch: on a baseline by its accuracy, on a method by its difference.

        If runs of a row or of its baseline diverged, the verdict says so: without batch norm that is a result and not
        an accident, and a mean of the others would be one of chosen runs.
        """
        best, claim = self.measured(BEST), published.difference(self.row)
        if own := _diverged(self.runs):
            return Verdict(DIVERGED, own)
        if best is None:
            return Verdict(NOT_RUN)
        if base := _diverged(self.baseline):
            return Verdict(DIVERGED, f"baseline: {base} diverged")
        if claim is None:
            return judge_accuracy(self.row.test_top1, best)
        return judge_difference(claim, self.difference(BEST))


def _diverged(runs: pd.DataFrame) -> str:
    """The number of diverged runs among those that have ended, as text: `2 of 5`; empty if none diverged."""
    found = Counter(runs.status.tolist())
    return f"{found[DIVERGED]} of {found[DIVERGED] + found[FINISHED]}" if found[DIVERGED] else ""


Filling = Mapping[tuple[Row, Arm], Sequence[pd.DataFrame]]
"""The runs that fill a row in an arm, a frame for each setting."""


@cache
def expected(row: Row, arm: Arm) -> Mapping[str, Any]:
    """The config values, by dotted name, that a run must have to fill a row, except for the free ones (`is_free`)."""
    hook = arm.implementation == HOOK and row.alpha != 1
    values = {
        **_settings(row.model, row.schedule, arm.recipe),
        "model.name": row.model,
        "data.name": "imagenet",
        "data.image_size": IMAGE_SIZE,
        "data.drop_last": True,
        "method.alpha": row.alpha,
        "method.implementation": HOOK if hook else EXACT,
        "method.label_smoothing": row.label_smoothing,
        "recipe.global_batch": row.batch,
        "trainer.evaluate_every": 1,
        **PRECISION,
        **_transforms(row.method),
    }
    if row.model.endswith("_nobn"):  # four GPUs share the batch; that matters to the hook alone
        values["recipe.local_batch"] = row.batch // 4 if hook else None
    return values


def is_free(key: str, arm: Arm) -> bool:
    """Whether runs of one row may differ in a key. Those that do are lines of their own."""
    return key == DECODER or key.startswith(TRANSFORMS) or (key in PRECISION and arm.implementation == EXACT)


@cache
def _settings(model: str, schedule: str, recipe: str) -> dict[str, Any]:
    """The values of a network, a schedule and a recipe in the config groups."""
    values = {
        "model": identity(Model(**read_conf(f"model/{model}"))),
        "recipe": read_conf("recipe/paper"),
        "schedule": read_conf(f"schedule/{schedule}"),
        "method": {"smoothing": read_conf("method/baseline")["smoothing"]},
    }
    if recipe != "paper":
        more = read_conf(f"recipe/{recipe}")
        values = {group: value | more.get(group, {}) for group, value in values.items()}
    return dotted(values)


@cache
def _transforms(method: str) -> dict[str, Any]:
    """The transforms of a method: those of GC or AGC; PGT adds none."""
    first = method.split("+")[0]
    return dotted({"method": {"transforms": read_conf(f"method/{first}").get("transforms", [])}})


def measure(runs: pd.DataFrame, table: int) -> tuple[list[Line], Counter[tuple[str, str]]]:
    """Find the runs that fill the rows of Table 1, 2 or 3, and judge each row by them.

    Args:
        runs: as `pgt.runs.frame` gives them.

    Returns:
        One line or more for each row, and how many runs of its experiments fill no row, by the experiment and what
        differs: the keys, each with the runs' value and the row's.
    """
    rows = published.rows(table)
    by_setting = {row.setting: row for row in rows}
    by_experiment = {name: row for row in rows for name in (row.experiment, truncation(row.experiment))}
    filling: dict[tuple[Row, Arm], list[pd.DataFrame]] = defaultdict(list)
    strays: Counter[tuple[str, str]] = Counter()
    once = farthest(runs)
    concerned = once.get("data.name", once.run).eq("imagenet") | once.experiment.isin(by_experiment)
    for _, members in once[concerned].groupby("group_id", sort=False):
        config, row = _config(members), by_setting.get(_setting(members.iloc[0]))
        arm, differing = _nearest_arm(config, row) if row else (ARMS[0], "")
        if row and not differing:
            filling[row, arm].append(members)
            continue
        for experiment in members.experiment:
            if own := by_experiment.get(experiment):
                strays[experiment, differing or _nearest_arm(config, own)[1]] += 1
    return [line for row in rows for line in _lines(row, filling, runs.iloc[:0])], strays


def truncation(experiment: str) -> str:
    """The experiment that shows the same cell by the authors' hook."""
    return f"truncation/{experiment.replace('/', '_')}"


def _setting(run: pd.Series[Any]) -> tuple[Any, ...]:
    """`Row.setting` of a run; every implementation of PGT counts as `pgt`."""
    return (
        run["model.name"],
        run["schedule.name"],
        run["recipe.global_batch"],
        as_pgt(run["method"], run["method.implementation"]),
        run["alpha"],
        run["method.label_smoothing"],
    )


def _nearest_arm(config: Mapping[str, Any], row: Row) -> tuple[Arm, str]:
    """The arm of a row that a config is nearest to, and what keeps it from filling the row there (empty: nothing)."""

    def differing(arm: Arm) -> list[tuple[str, Any, Any]]:
        return [d for d in unlike(config, expected(row, arm)) if not is_free(d[0], arm)]

    def distance(arm: Arm) -> tuple[bool, int]:
        keys = [key for key, _, _ in differing(arm)]
        return "method.implementation" in keys, len(keys)

    arm = min(ARMS, key=distance)
    return arm, ", ".join(f"{key}={own} (not {wanted})" for key, own, wanted in differing(arm))


def _lines(row: Row, filling: Filling, nothing: pd.DataFrame) -> list[Line]:
    """A line for each arm and setting that has runs, and for both recipes of Eq. 9 in any case."""
    lines: list[Line] = []
    for arm in ARMS:
        groups = filling.get((row, arm), [])
        several = len({_config(runs).get(DECODER) for runs in groups}) > 1
        for runs in groups:
            baseline = _baseline(row, arm, _config(runs), filling, nothing)
            lines.append(Line(runs, baseline, row, arm, _label(row, arm, runs, several), first=not lines))
        if not groups and arm.implementation == EXACT:
            lines.append(Line(nothing, nothing, row, arm, "", first=not lines))
    return lines


def _config(runs: pd.DataFrame) -> dict[str, Any]:
    """The config values that all runs of a setting share."""
    return {str(name): value for name, value in runs[config_names(runs)].iloc[0].items()}


def _label(row: Row, arm: Arm, runs: pd.DataFrame, several: bool) -> str:
    """The overrides that lead from the row's experiment to the config of some runs.

    Args:
        several: the row's runs in this arm have more than one decoder, so that it is named, too.
    """
    config = _config(runs)
    values = {key: value for key, value, _ in unlike(config, expected(row, arm)) if key != DECODER}
    return overrides(values | ({DECODER: config.get(DECODER)} if several else {}))


def _baseline(row: Row, arm: Arm, config: Mapping[str, Any], filling: Filling, nothing: pd.DataFrame) -> pd.DataFrame:
    """The runs that a line is compared with: of the baseline's row, by the same recipe, alike but for the method and
    the decoder; of several, one with finished runs, and the most alike. The hook's group size makes no difference to a
    baseline."""
    base = published.baseline(row)
    free = {DECODER, *(["recipe.local_batch"] if arm.implementation == HOOK else [])}

    def differing(runs: pd.DataFrame) -> set[str]:
        return {key for key, _, _ in unlike(config, _config(runs)) if not key.startswith("method.")}

    found = filling.get((base, Arm(arm.recipe, EXACT)), []) if base else []
    alike = [runs for runs in found if differing(runs) <= free]
    return min(alike, key=lambda runs: (finished(runs).empty, len(differing(runs))), default=nothing)
