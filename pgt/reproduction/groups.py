"""Runs in groups of one setting, whatever their seeds, and two such groups side by side."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from pgt.config.resources import choices, read_conf
from pgt.core.errors import InputError
from pgt.reproduction.formats import Note
from pgt.reproduction.statistics import Difference, Sample, difference, paired_difference, sample
from pgt.runs.folder import DIVERGED, FINISHED, UNFINISHED
from pgt.runs.frame import config_names, frame, records
from pgt.runs.labels import experiment_name, run_title, with_alpha

METHODS = {
    "baseline": "baseline",
    "gc": "GC",
    "agc": "AGC",
    "pgt": "PGT",
    "gc+pgt": "GC + PGT",
    "agc+pgt": "AGC + PGT",
}
"""The paper's methods in their order: label -> how its tables print it."""


TRAIN, LAST, BEST = "train_top1", "test_top1_final", "test_top1_best"
"""Training top-1 of the last epoch, test top-1 of the last and of the best epoch, percent. Verdicts go by the best."""

Smoothing = tuple[float, str]
"""Label smoothing: ε, and how it is spread over the classes (`method.smoothing`; empty if ε is 0)."""

PLAIN: Smoothing = (0.0, "")
"""No label smoothing."""


def smoothing(run: Mapping[str, Any]) -> Smoothing:
    """The label smoothing of a run, a row of the frame."""
    epsilon = float(run["method.label_smoothing"])
    return (epsilon, run["method.smoothing"]) if epsilon else PLAIN


def baseline_smoothing(method: str, own: Smoothing) -> Smoothing | None:
    """The label smoothing of the baseline that a method is compared with; None for the plain baseline, which has none.

    A method is compared with the baseline of the same label smoothing, label smoothing alone with the plain baseline.
    """
    if method != "baseline":
        return own
    return None if own == PLAIN else PLAIN


@dataclass(frozen=True, eq=False)
class Comparison:
    """The runs of a setting beside those of its baseline: rows of the frame of any status, or none."""

    runs: pd.DataFrame
    baseline: pd.DataFrame

    @property
    def seeds(self) -> list[int]:
        """The seeds of the finished runs."""
        return sorted(by_seed(self.runs, "epochs"))

    @property
    def counts(self) -> dict[str, int]:
        """The number of finished (`n`), diverged and unfinished runs, as columns of data."""
        found = Counter(self.runs.status.tolist())
        return {"n": found[FINISHED], DIVERGED: found[DIVERGED], UNFINISHED: found[UNFINISHED]}

    @property
    def count(self) -> str:
        """The number of seeds, and of the runs of each status other than finished: `3, 1 diverged`."""
        found = Counter(self.runs.status.tolist())
        return ", ".join([str(found.pop(FINISHED, 0)), *(f"{n} {status}" for status, n in found.items())])

    def measured(self, name: str) -> Sample | None:
        """Mean and deviation of a measured value over the finished runs; None if there are none."""
        values = list(by_seed(self.runs, name).values())
        return sample(values) if values else None

    def paired(self, name: str) -> Sample | None:
        """The difference to the baseline, seed by seed; None if no seed has both."""
        return paired_difference(by_seed(self.runs, name), by_seed(self.baseline, name))

    @property
    def gap(self) -> Sample | None:
        """Training top-1 of the last epoch minus test top-1 of the best; None without a finished run."""
        return paired_difference(by_seed(self.runs, TRAIN), by_seed(self.runs, BEST))

    def difference(self, name: str) -> Difference | None:
        """The difference to the baseline with its interval; None if either side has no finished run."""
        return difference(by_seed(self.runs, name), by_seed(self.baseline, name))


@dataclass(frozen=True, eq=False)
class Group(Comparison):
    """The seeds of one setting of an experiment, beside those of the experiment's baseline of the same recipe.

    `baseline_smoothing` says which label smoothing that baseline has.

    Attributes:
        experiment, method, alpha: as in `pgt.runs.frame`.
        setting: what else tells it from other groups of the experiment, as `recipe.epochs=2`; empty if nothing does.
        recipe: every config value outside the method, as text. A group and its baseline have the same.
        smoothing: its label smoothing.
    """

    experiment: str
    method: str
    alpha: float
    setting: str
    recipe: tuple[str, ...]
    smoothing: Smoothing

    @property
    def label(self) -> str:
        """Method, α and setting in a few words."""
        return joined(with_alpha(self.method, self.alpha), self.setting)

    @property
    def finished(self) -> pd.DataFrame:
        return finished(self.runs)

    @property
    def titled(self) -> list[tuple[str, dict[str, Any]]]:
        """Title and row of each run: finished ones first, then by seed. The title says the status of the others."""
        order = self.runs.assign(later=self.runs.status != FINISHED).sort_values(["later", "seed"], kind="stable")
        runs = records(order[self.runs.columns])
        ends = ["" if run["status"] == FINISHED else f" ({run['status']})" for run in runs]
        return [
            (run_title(self.experiment, self.label, run["seed"]) + end, run)
            for run, end in zip(runs, ends, strict=True)
        ]


def read_runs(root: Path, experiment: str | None) -> pd.DataFrame:
    """The frame of an experiment's runs, or of those of a folder of experiments; of all runs for None.

    A run is there once in its experiment, however many folders hold it.

    Raises:
        InputError: there is no run of it.
    """
    runs = farthest(frame(root, experiment), ["experiment", "run_id"])
    if runs.empty:
        raise no_runs(root, experiment)
    return runs


def no_runs(root: Path, experiment: str | None) -> InputError:
    """The error for an experiment without runs, or for a runs folder without any; it says what makes some."""
    way_out = _way_out(experiment) if experiment else "`pgt train experiment=demo/bn` makes one in seconds"
    return InputError(f"no runs under {root / (experiment or '')}: {way_out}")


def read_groups(root: Path, experiment: str) -> list[Group]:
    """The groups of an experiment, or of a folder of experiments: by experiment, the baseline first.

    Raises:
        InputError: there is no run of it.
    """
    return grouped(read_runs(root, experiment))


def grouped(runs: pd.DataFrame) -> list[Group]:
    """Runs in groups: by experiment, the baseline first."""
    of_method = [name for name in config_names(runs) if name.startswith("method.")]
    others = [name for name in config_names(runs) if name not in of_method]
    found: list[tuple[list[tuple[int, Any]], Group]] = []
    for _, own in runs.groupby("experiment"):
        differing = telling(own, others)
        heads = {head["group_id"]: head for head in records(own.drop_duplicates("group_id"))}
        for _, alike in own.groupby(["method", "alpha"], sort=False):
            told = [*differing, *telling(alike, of_method)]
            for group_id, members in alike.groupby("group_id", sort=False):
                head = heads[group_id]
                recipe = tuple(str(head[name]) for name in others)
                values = {key: head[key] for key in ("experiment", "method", "alpha", *told)}
                named = head["experiment"], head["method"], head["alpha"], overrides({key: head[key] for key in told})
                group = Group(members, members[:0], *named, recipe, smoothing(head))
                found.append(([sort_key(*value) for value in values.items()], group))
    groups = [group for _, group in sorted(found, key=itemgetter(0))]
    bases = [group for group in groups if group.method == "baseline" and not group.finished.empty]

    def baseline(group: Group) -> pd.DataFrame:
        wanted = group.experiment, group.recipe, baseline_smoothing(group.method, group.smoothing)
        alike = (base.runs for base in bases if (base.experiment, base.recipe, base.smoothing) == wanted)
        return next(alike, group.baseline)

    return [replace(group, baseline=baseline(group)) for group in groups]


def sort_key(name: str, value: Any) -> tuple[int, Any]:
    """The sort key of a value of a column: null, numbers, text; methods as in the paper's tables, α from 1 down."""
    if name == "method" and value in METHODS:
        return 0, list(METHODS).index(value)
    if value is None or isinstance(value, int | float):
        return (0, 0) if value is None else (1, -value if name == "alpha" else value)
    return 2, str(value)


def varying(runs: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns among `names` that have more than one value."""
    values = {name: runs[name].tolist() for name in names}  # lists: a Series takes a hundred times as long by value
    return [name for name, column in values.items() if any(value != column[0] for value in column)]


def telling(runs: pd.DataFrame, names: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """The columns among `names` that are needed to tell runs apart.

    A column is taken if it separates runs that are equal in `known` and in the columns taken before it. So a key that
    always changes together with an earlier one (`model.interpolation` with `model.name`) is left out.
    """
    texts = runs[[*known, *varying(runs, [name for name in names if name not in known])]].map(str)
    found, count = [*known], len(texts[[*known]].drop_duplicates()) if known else 1
    for name in texts.columns[len(known) :]:
        if (more := len(texts[[*found, name]].drop_duplicates())) > count:
            found, count = [*found, name], more
    return found[len(known) :]


def overrides(values: Mapping[Any, Any]) -> str:
    """Values as the command line takes them: `recipe.epochs=2 data.backend=null`."""
    return " ".join(f"{key}={'null' if value is None else value}" for key, value in values.items())


def unlike(values: Mapping[str, Any], others: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value, other value) for each key in which two configs differ; a missing key counts as null."""
    keys = [*values, *(key for key in others if key not in values)]
    return [(key, values.get(key), others.get(key)) for key in keys if values.get(key) != others.get(key)]


def farthest(runs: pd.DataFrame, by: str | Sequence[str] = "run_id") -> pd.DataFrame:
    """Each run once, however many folders it lies in: the copy that has come farthest.

    Args:
        by: the columns that copies of a run have in common.
    """
    order = runs.assign(ended=runs.status != UNFINISHED)
    order = order.sort_values(["ended", "epochs"], ascending=False, kind="stable")
    return runs.loc[sorted(order.drop_duplicates(by).index)]


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs whose status is `finished`."""
    return runs[runs.status == FINISHED]


def warnings(runs: pd.DataFrame) -> list[Note]:
    """A note that lists the runs whose last epoch ended with a warning, for example that the network learns nothing."""
    warned = runs[runs.warning.notna()]
    lines = [f"{run}: {warning}" for run, warning in zip(warned.run, warned.warning, strict=True)]
    return [Note("Warnings of the last epoch:", lines)] if lines else []


def by_seed(runs: pd.DataFrame, name: str) -> dict[int, float]:
    """A measured value of the finished runs of one setting, by their seeds."""
    rows = zip(runs.seed.tolist(), runs.status.tolist(), runs[name].tolist(), strict=True)
    return {seed: value for seed, status, value in rows if status == FINISHED}


def data_of(runs: pd.DataFrame) -> str:
    """The data sets that runs were measured on."""
    return ", ".join((runs["data.name"] + " (" + runs.manifest + ")").unique())


def experiment_override(runs: pd.DataFrame) -> str:
    """The override that trains the experiments of runs: `experiment=demo/bn,demo/nobn`.

    It is `...` if some of the runs have no experiment, since nobody else knows their overrides.
    """
    names = list(dict.fromkeys(runs.experiment))
    return "..." if experiment_name(None) in names else f"experiment={','.join(names)}"


def joined(*parts: str) -> str:
    """The parts that are not empty, with spaces between them."""
    return " ".join(part for part in parts if part)


def _way_out(experiment: str) -> str:
    """The advice for an experiment that has no runs."""
    names = choices("experiment")
    folders = sorted({name.rpartition("/")[0] for name in names})
    if experiment in names:
        flag = "-m " if "sweep" in read_conf(f"experiment/{experiment}") else ""
        return f"run `pgt train {flag}experiment={experiment}` first"
    if experiment.strip("/") in folders:
        return f"run `pgt train -m experiment={experiment.strip('/')}/all` first"
    nearest = difflib.get_close_matches(experiment, [*names, *folders], n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"name one out of {', '.join(folders)}, or of your own"
    return f"there is no experiment of this name; {hint}"
