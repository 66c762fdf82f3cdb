"""The paper's tables beside what was measured: which runs fill a row, and what they say of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pgt.config.identity import method_label
from pgt.config.resources import read_conf
from pgt.reproduction import published
from pgt.reproduction.groups import flat, setting_of, unlike
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
from pgt.runs.folder import DIVERGED, FINISHED, UNFINISHED, Summary, progress

EXACT, HOOK = "exact", "authors_hook"

DATA, IMAGE_SIZE = "imagenet", 224

PRECISION = {"trainer.precision": "fp16", "trainer.loss_scale": 65536, "trainer.loss_scale_growth_interval": 2000}
"""Of every experiment of the tables. The hook depends on all of it."""

DECODER = "data.backend"
"""What decodes is a matter of the machine."""

TRANSFORMS = "method.transforms."
"""Where the thresholds of GC and AGC are, which are not published."""


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
        setting: overrides that lead from the row's experiment to these runs; empty where there are none.
        seeds: of the finished runs.
        ended: of the finished and the diverged ones.
        others: runs that are not in the numbers, by status.
        train: training top-1 of the last epoch; `best`, `final`: test top-1 of the best and of the last epoch.
        difference: of `best` to the baseline's; `train_difference`: of `train`.
    """

    row: Row
    arm: Arm
    setting: str
    seeds: Sequence[int]
    ended: Sequence[int]
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
    """Dotted keys and values that a run must have to fill a row; those of `free` may be others."""
    hook = arm.implementation == HOOK and row.alpha != 1
    values = {
        **_settings(row.model, row.schedule, arm.recipe),
        "model.name": row.model,
        "data.name": DATA,
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
    """Whether runs of one row may differ in a key; those that do are told apart."""
    return key == DECODER or key.startswith(TRANSFORMS) or (key in PRECISION and arm.implementation == EXACT)


@cache
def _settings(model: str, schedule: str, recipe: str) -> dict[str, Any]:
    """What the config groups say of a network, a schedule and a recipe."""
    values = {
        "model": read_conf(f"model/{model}"),
        "recipe": read_conf("recipe/paper"),
        "schedule": read_conf(f"schedule/{schedule}"),
        "method": {"smoothing": read_conf("method/baseline")["smoothing"]},
    }
    if recipe != "paper":
        more = read_conf(f"recipe/{recipe}")
        values = {group: value | more.get(group, {}) for group, value in values.items()}
    return flat(values)


@cache
def _transforms(method: str) -> dict[str, Any]:
    """The transforms of a method: those of GC or AGC, which PGT does not change."""
    first = method.split("+")[0]
    return flat({"method": {"transforms": read_conf(f"method/{first}").get("transforms", [])}})


Filling = Mapping[tuple[tuple[Any, ...], Arm, str], Sequence[Summary]]
"""(setting of a row, arm, group of seeds) -> its runs."""


def measure(runs: Iterable[tuple[Path, Summary]], table: int) -> tuple[list[Line], list[Stray]]:
    """The lines of Table 1, 2 or 3 with runs as `pgt.runs.find` gives them: each row has one at least; and the runs of
    its experiments that fill none."""
    rows = published.rows(table)
    by_setting = {row.setting: row for row in rows}
    by_experiment = {name: row for row in rows for name in (row.experiment, truncation(row.experiment))}
    filling: dict[tuple[tuple[Any, ...], Arm, str], list[Summary]] = defaultdict(list)
    strays: Counter[tuple[str, str]] = Counter()
    for summary in _once(runs):
        setting = _setting(summary.identity)
        own = by_experiment.get(summary.experiment or "")
        row = by_setting.get(setting, own)
        if row is None:
            continue
        arm, differing = _arm(summary.identity, row)
        if not differing:
            filling[setting, arm, summary.group_id].append(summary)
        elif own is not None:
            strays[summary.experiment or "", differing] += 1
    lines = [line for row in rows for line in _lines(row, filling)]
    return lines, [Stray(name, count, differing) for (name, differing), count in strays.items()]


def truncation(experiment: str) -> str:
    """The experiment that shows the same cell by the authors' hook."""
    return f"truncation/{experiment.replace('/', '_')}"


def _once(runs: Iterable[tuple[Path, Summary]]) -> list[Summary]:
    """Each run once, however many folders it lies in: the one that has come farthest."""
    found: dict[str, Summary] = {}
    for _, summary in runs:
        other = found.setdefault(summary.run_id, summary)
        if progress(summary) > progress(other):
            found[summary.run_id] = summary
    return list(found.values())


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
    """The arm that is nearest to a run, and how the run differs from what it asks for; empty where it does not."""
    values = flat(identity)
    found = []
    for position, arm in enumerate(ARMS):
        differing = [d for d in unlike(values, expected(row, arm)) if not is_free(d[0], arm)]
        texts = [f"{key}={own} (not {wanted})" for key, own, wanted in differing]
        other = any(key == "method.implementation" for key, _, _ in differing)
        found.append((other, len(differing), position, ", ".join(texts)))
    _, _, position, text = min(found)
    return ARMS[position], text


def _lines(row: Row, filling: Filling) -> list[Line]:
    """Of each arm that has runs; of Eq. 9 by either recipe in any case."""
    lines = []
    for arm in ARMS:
        groups = [runs for (setting, of, _), runs in filling.items() if (setting, of) == (row.setting, arm)]
        for runs in groups:
            baseline = _baseline(row, arm, flat(runs[0].identity), filling)
            lines.append(_line(row, arm, _label(row, arm, runs, groups), runs, baseline))
        if not groups and arm.implementation == EXACT:
            lines.append(_line(row, arm, "", [], []))
    return lines


def _label(row: Row, arm: Arm, runs: Sequence[Summary], groups: Sequence[Sequence[Summary]]) -> str:
    """What tells runs from the row's experiment; the decoder, where it tells them from other runs of the row."""
    own = flat(runs[0].identity)
    overrides = [f"{key}={value}" for key, value, _ in unlike(own, expected(row, arm)) if key != DECODER]
    decoder = setting_of(own, [{DECODER: flat(members[0].identity).get(DECODER)} for members in groups])
    return " ".join(part for part in (*overrides, decoder) if part)


def _baseline(row: Row, arm: Arm, own: Mapping[str, Any], filling: Filling) -> Sequence[Summary]:
    """The runs that a line's difference is to: of the baseline's row, by the same recipe, and alike but for the method
    and the decoder. The hook's group size is none of a baseline's concern."""
    base = published.baseline(row)
    if base is None:
        return []
    wanted = (base.setting, Arm(arm.recipe, EXACT))
    candidates: list[tuple[int, int, Sequence[Summary]]] = []
    for (setting, of, _), members in filling.items():
        if (setting, of) != wanted or not any(summary.status == FINISHED for summary in members):
            continue
        differing = {key for key, _, _ in unlike(own, flat(members[0].identity)) if not key.startswith("method.")}
        if differing <= {DECODER, *(["recipe.local_batch"] if arm.implementation == HOOK else [])}:
            candidates.append((len(differing), len(candidates), members))
    return min(candidates)[2] if candidates else []


def _line(row: Row, arm: Arm, setting: str, runs: Sequence[Summary], baseline: Sequence[Summary]) -> Line:
    done = [summary for summary in runs if summary.status == FINISHED]
    base = [summary for summary in baseline if summary.status == FINISHED]

    def measured(key: str) -> Sample | None:
        return sample([getattr(summary, key) for summary in done]) if done else None

    def against(key: str) -> Difference | None:
        return difference({s.seed: getattr(s, key) for s in done}, {s.seed: getattr(s, key) for s in base})

    best, gain = measured("test_top1_best"), against("test_top1_best")
    others = Counter(summary.status for summary in runs if summary.status != FINISHED)
    return Line(
        row=row,
        arm=arm,
        setting=setting,
        seeds=sorted(summary.seed for summary in done),
        ended=sorted(summary.seed for summary in runs if summary.status != UNFINISHED),
        others=others,
        train=measured("train_top1"),
        best=best,
        final=measured("test_top1_final"),
        difference=gain,
        train_difference=against("train_top1"),
        verdict=_verdict(row, best, gain, others[DIVERGED], len(done)),
    )


def _verdict(row: Row, best: Sample | None, gain: Difference | None, diverged: int, done: int) -> Verdict:
    """A baseline claims an accuracy, a method a difference; runs that diverge are no accident to be left out."""
    if diverged:
        return Verdict(DIVERGED, f"{diverged} of {diverged + done}")
    claim = published.difference(row)
    if best is None:
        return Verdict(NOT_RUN)
    return judge_accuracy(row.test_top1, best) if claim is None else judge_difference(claim, gain)
