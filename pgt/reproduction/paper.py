"""The paper's tables beside what was measured: which runs fill a row, and what they say of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pgt.reproduction import published
from pgt.reproduction.groups import flat, setting_of
from pgt.reproduction.published import Row
from pgt.reproduction.statistics import (
    NOT_RUN,
    Difference,
    Sample,
    Verdict,
    difference,
    judge_accuracy,
    judge_difference,
    sample,
)
from pgt.resources import conf_dir
from pgt.runs import FINISHED, Summary, find, method_label

EXACT, HOOK = "exact", "authors_hook"

DATA, IMAGE_SIZE = "imagenet", 224

FREE = ("trainer.", "data.backend", "data.drop_last", "model.interpolation", "method.transforms")
"""Beginnings of the keys in which runs of one row may differ; those that do are told apart."""


@dataclass(frozen=True)
class Arm:
    """A reading of a row: by the paper's text or by the authors' flags, Eq. 9 or what their code computed."""

    recipe: str
    implementation: str

    def __str__(self) -> str:
        return self.recipe if self.implementation == EXACT else f"{self.recipe}, authors' hook"


ARMS = tuple(Arm(recipe, implementation) for implementation in (EXACT, HOOK) for recipe in ("paper", "authors"))
"""In the order in which they are listed."""


@dataclass(frozen=True)
class Line:
    """What was measured of a row, in one arm and one setting.

    Attributes:
        setting: values that tell it from other lines of row and arm; empty where there are none.
        others: runs that are not in the numbers, by status.
        train: training top-1 of the last epoch; `best`, `final`: test top-1 of the best and of the last epoch.
        difference: of `best` to the baseline's.
        train_difference: of `train`.
        seeds: of the finished runs.
    """

    row: Row
    arm: Arm
    setting: str
    seeds: Sequence[int]
    others: Mapping[str, int]
    train: Sample | None
    best: Sample | None
    final: Sample | None
    difference: Difference | None
    train_difference: Difference | None
    verdict: Verdict


@dataclass(frozen=True)
class Stray:
    """Runs of a row's experiment that do not follow its recipe: the keys, with the run's and the row's value."""

    experiment: str
    count: int
    differing: str


def expected(row: Row, arm: Arm) -> dict[str, Any]:
    """Dotted keys and values that a run must have to fill a row (`FREE` ones apart)."""
    names = {
        "model.name": row.model,
        "data.name": DATA,
        "data.image_size": IMAGE_SIZE,
        "method.alpha": row.alpha,
        "method.implementation": arm.implementation if row.alpha != 1 else EXACT,
        "method.label_smoothing": row.label_smoothing,
        "recipe.global_batch": row.batch,
    }
    values = {**_settings(row.schedule, arm.recipe), **names}
    if row.model.endswith("_nobn"):  # four GPUs share the batch; that matters to the hook alone
        values["recipe.local_batch"] = row.batch // 4 if names["method.implementation"] == HOOK else None
    return values


@cache
def _settings(schedule: str, recipe: str) -> dict[str, Any]:
    """What the config groups say of a schedule and a recipe."""
    from omegaconf import OmegaConf

    def load(path: str) -> dict[str, Any]:
        values = OmegaConf.to_container(OmegaConf.load(conf_dir() / path))
        assert isinstance(values, dict)
        return {str(key): value for key, value in values.items() if key != "defaults"}

    values = {"recipe": load("recipe/paper.yaml"), "schedule": load(f"schedule/{schedule}.yaml")}
    method = {"smoothing": load("method/baseline.yaml")["smoothing"]}
    if recipe != "paper":
        more = load(f"recipe/{recipe}.yaml")
        values["recipe"] |= more["recipe"]
        method |= more["method"]
    return flat({**values, "method": method})


def measure(root: Path, table: int) -> tuple[list[Line], list[Stray]]:
    """The lines of Table 1, 2 or 3 with the runs under `root`: each row has one at least; and the runs left out."""
    rows = published.rows(table)
    filling: dict[tuple[tuple[Any, ...], Arm, str], list[Summary]] = defaultdict(list)
    strays: Counter[tuple[str, str]] = Counter()
    for _, summary in find(root):
        setting = _setting(summary.identity)
        if not any(row.setting == setting for row in rows):
            continue
        arm, differing = _arm(summary.identity, next(row for row in rows if row.setting == setting))
        if differing:
            strays[summary.experiment or "custom", differing] += 1
        else:
            filling[setting, arm, summary.group_id].append(summary)
    lines = [line for row in rows for line in _lines(row, filling)]
    return lines, [Stray(name, count, differing) for (name, differing), count in strays.items()]


def _setting(identity: Mapping[str, Any]) -> tuple[Any, ...]:
    """As `Row.setting`: whatever computes PGT."""
    method = identity["method"]
    plain = {**identity, "method": {**method, "implementation": EXACT}}
    return (
        identity["model"]["name"],
        identity["schedule"]["name"],
        identity["recipe"]["global_batch"],
        method_label(plain),
        method["alpha"],
        method["label_smoothing"],
    )


def _arm(identity: Mapping[str, Any], row: Row) -> tuple[Arm, str]:
    """The arm that a run belongs to, and how it differs from what that asks for; empty where it does not."""
    values = flat(identity)
    found = []
    for arm in ARMS:
        wanted = expected(row, arm)
        keys = [key for key in values if not key.startswith(FREE) and values[key] != wanted.get(key)]
        texts = [f"{key}={values[key]}" + (f" (not {wanted[key]})" if key in wanted else "") for key in keys]
        found.append((len(keys), ARMS.index(arm), arm, ", ".join(texts)))
    _, _, arm, differing = min(found)
    return arm, differing


def _lines(row: Row, filling: Mapping[tuple[tuple[Any, ...], Arm, str], Sequence[Summary]]) -> list[Line]:
    """Of each arm that has runs; of Eq. 9 by either recipe in any case."""
    lines = []
    for arm in ARMS:
        groups = [runs for (setting, of, _), runs in filling.items() if (setting, of) == (row.setting, arm)]
        identities = [flat(runs[0].identity) for runs in groups]
        for runs, identity in zip(groups, identities, strict=True):
            lines.append(_line(row, arm, setting_of(identity, identities), runs, _baseline(row, arm, runs, filling)))
        if not groups and arm.implementation == EXACT:
            lines.append(_line(row, arm, "", [], []))
    return lines


def _baseline(
    row: Row,
    arm: Arm,
    runs: Sequence[Summary],
    filling: Mapping[tuple[tuple[Any, ...], Arm, str], Sequence[Summary]],
) -> Sequence[Summary]:
    """The runs that a line's difference is to: of the baseline's row and the same recipe, and alike in what is free."""
    base = published.baseline(row)
    if base is None:
        return []
    wanted = (base.setting, Arm(arm.recipe, EXACT))
    candidates = [members for (setting, of, _), members in filling.items() if (setting, of) == wanted]

    def unlike(members: Sequence[Summary]) -> int:
        own, other = flat(runs[0].identity), flat(members[0].identity)
        return sum(own.get(key) != other.get(key) for key in own.keys() | other.keys())

    return min(candidates, key=unlike, default=[])


def _line(row: Row, arm: Arm, setting: str, runs: Sequence[Summary], baseline: Sequence[Summary]) -> Line:
    done = [summary for summary in runs if summary.status == FINISHED]
    base = [summary for summary in baseline if summary.status == FINISHED]

    def measured(key: str) -> Sample | None:
        return sample([getattr(summary, key) for summary in done]) if done else None

    def against(key: str) -> Difference | None:
        return difference({s.seed: getattr(s, key) for s in done}, {s.seed: getattr(s, key) for s in base})

    best, gain = measured("test_top1_best"), against("test_top1_best")
    return Line(
        row=row,
        arm=arm,
        setting=setting,
        seeds=sorted(summary.seed for summary in done),
        others=Counter(summary.status for summary in runs if summary.status != FINISHED),
        train=measured("train_top1"),
        best=best,
        final=measured("test_top1_final"),
        difference=gain,
        train_difference=against("train_top1"),
        verdict=_verdict(row, best, gain),
    )


def _verdict(row: Row, best: Sample | None, gain: Difference | None) -> Verdict:
    """A baseline claims an accuracy, a method a difference."""
    claim = published.difference(row)
    if best is None:
        return Verdict(NOT_RUN)
    return judge_accuracy(row.test_top1, best) if claim is None else judge_difference(claim, gain)
