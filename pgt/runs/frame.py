"""The runs under a folder as one pandas frame: a row a run, a column a value. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgt.runs.folder import Summary, find
from pgt.runs.labels import experiment_name, method_label

if TYPE_CHECKING:  # pandas takes as long to import as the rest of a command: only `frame` itself imports it
    import pandas as pd

FIRST = ("run", "experiment", "run_id", "group_id", "seed", "status", "reason", "method", "alpha")

SUMMARY = tuple(item.name for item in fields(Summary) if item.name not in ("identity", "version"))

NUMBERS = {item.name for item in fields(Summary) if item.type == "float | None"}
"""Measured values: floats, NaN until measured."""


def frame(root: Path | str, experiment: str | None = None) -> pd.DataFrame:
    """Read the summary of every run under a folder.

    A run whose summary cannot be read is left out, with one warning on standard error. The columns, in this order:

    - `run`: the run's folder, a `Path`; rows are sorted by it.
    - `experiment`: `custom` for a run without one.
    - `run_id`, `group_id`: names of the run's config with and without its seed. Runs of one `group_id` differ in their
      seed only.
    - `seed`, `status` (`unfinished`, `finished` or `diverged`) and `reason` (why a run diverged, else None).
    - `method`, `alpha`: the method as the paper's tables name it (`baseline`, `gc+pgt`, ...) and the α of PGT.
    - A column for each config value that changes a run's numbers, under the name that an override has:
      `recipe.epochs`, `data.name`, `method.transforms.0.max_norm`. These names, and no others, contain a dot. A value
      that a run's config lacks is None.
    - The other values of `summary.json`, as `pgt.runs.folder.Summary` describes them: `epochs`, `train_top1`,
      `test_top1_best`, `test_top1_final`, `images_per_second`, `manifest`, `commit`, ... Measured values are NaN until
      they are measured.

    Args:
        root: the runs folder.
        experiment: only this one, or all that its name is a folder of (`demo` finds `demo/bn`).

    Examples:
        >>> runs = frame("runs", "demo")
        >>> finished = runs[runs.status == "finished"]
        >>> top1 = finished.groupby(["method", "recipe.epochs"]).test_top1_best.agg(["mean", "std", "count"])
    """
    import pandas as pd

    rows = [row(folder, summary) for folder, summary in find(Path(root), experiment)]
    names = list(dict.fromkeys([*FIRST, *_config_names(rows), *SUMMARY]))
    return pd.DataFrame({name: _column(name, [values.get(name) for values in rows]) for name in names})


def row(folder: Path, summary: Summary) -> dict[str, Any]:
    """The values of a run by their columns in `frame`; those that are not measured are None."""
    return {
        **{name: getattr(summary, name) for name in SUMMARY},
        **dotted(summary.identity),
        "run": folder,
        "experiment": experiment_name(summary.experiment),
        "method": method_label(summary.identity),
        "alpha": float(summary.identity["method"]["alpha"]),
    }


def _config_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all config values, those of one group (`recipe.`, `method.`) together."""
    names = list(dict.fromkeys(name for values in rows for name in values if "." in name))
    groups = list(dict.fromkeys(name.partition(".")[0] for name in names))
    return sorted(names, key=lambda name: groups.index(name.partition(".")[0]))


def _column(name: str, values: list[Any]) -> pd.Series[Any]:
    """Values of one simple type as that type; others stay Python objects, since 256 beside None would become 256.0."""
    import pandas as pd

    if name in NUMBERS:
        return pd.Series(values, dtype=float)
    simple = {type(value) for value in values} in ({bool}, {int}, {float}, {str})
    return pd.Series(values, dtype=None if simple else object)


def dotted(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of an identity (see `pgt.config.identity`) by the names that overrides have, without the seed.

    A list of dicts gets the keys `0`, `1`, ...; an empty list is left out.
    """
    found: dict[str, Any] = {}
    for key, value in identity.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict):
            found |= dotted(value, f"{name}.")
        elif name != "seed" and value != []:
            found[name] = value
    return found


def config_names(runs: pd.DataFrame) -> list[str]:
    """The columns of a frame that are config values."""
    return [name for name in runs.columns if "." in name]


def records(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as plain dictionaries; a value that is missing is None."""
    plain = runs.astype(object).where(runs.notna(), None)
    names = [str(name) for name in plain.columns]
    return [dict(zip(names, row, strict=True)) for row in plain.itertuples(index=False, name=None)]
