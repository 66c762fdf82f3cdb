"""Decides whether a run is left to do before torch is imported, so that a finished run answers at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgt import data
from pgt.config.identity import group_id, identity, run_id
from pgt.config.schema import Config
from pgt.core import machine
from pgt.core.errors import InputError
from pgt.data import DataSet
from pgt.runs import folder as runs
from pgt.runs.console import Screen
from pgt.runs.folder import DIVERGED, FINISHED, Summary
from pgt.runs.labels import method_title

OLD_DIGITS = "scikit-learn "
"""How the manifest of the digits began when they came from there: the same images as today's."""


@dataclass(frozen=True)
class Job:
    """A run that is not finished.

    Attributes:
        config: checked and resolved.
        dataset: the one that the config names.
        summary: as the run begins.
        folder: of the run.
        label: printed in front of each message, as `[2/18]`.
    """

    config: Config
    dataset: DataSet
    summary: Summary
    folder: Path
    label: str


def folder_of(config: Config) -> Path:
    """The folder of the config's run."""
    return Path(config.paths.runs) / (config.experiment or "custom") / run_id(identity(config))


def prepare(config: Config, label: str = "") -> Job | Summary:
    """The job of a config, or its summary if it has finished or diverged before. Writes nothing.

    Raises:
        InputError: the data cannot be used, or the run was made from other data.
    """
    dataset = data.open_set(**data_options(config))
    fresh = _new_summary(config, dataset.manifest)
    folder = folder_of(config)
    before = None if config.trainer.force else runs.read_summary(folder)
    if before is not None and before.manifest != fresh.manifest and not before.manifest.startswith(OLD_DIGITS):
        raise InputError(
            f"{folder} was made from other data ({before.manifest}, now {fresh.manifest}): "
            "add another paths.runs=... to keep both, or trainer.force=true to start over"
        )
    if before is not None and before.status in (FINISHED, DIVERGED):
        report_earlier(before, fresh, folder, label)
        return before
    if before is not None:
        fresh = replace(fresh, started=before.started)  # the checkpoint says what has been measured
    return Job(config, dataset, fresh, folder, label)


def _new_summary(config: Config, manifest: str) -> Summary:
    values = identity(config)
    return Summary(
        run_id=run_id(values),
        group_id=group_id(values),
        experiment=config.experiment,
        identity=values,
        seed=config.seed,
        manifest=manifest,
        commit=machine.commit(),
        started=machine.now(),
    )


def report_earlier(before: Summary, fresh: Summary, folder: Path, label: str) -> None:
    other = f", by commit {before.commit}; this is {fresh.commit}" if before.commit != fresh.commit else ""
    again = "; trainer.force=true starts over" if before.status == DIVERGED else ""
    text = f"{label}{folder}: {before.status} earlier{other}{again}\n{label}{result_line(before)}"
    Screen().print(text, markup=False)


def data_options(config: Config) -> dict[str, Any]:
    """The arguments of `pgt.data.open_set` that a config gives."""
    options = {key: value for key, value in config.data.model_dump().items() if key != "drop_last"}
    if config.data.name in data.FOLDERS:
        options["interpolation"] = config.model.interpolation
    return options


def describe(config: Config) -> str:
    """The title of a run: `demo/nobn gc+pgt α=0.25 seed 0`."""
    name = config.experiment or f"{config.model.name} on {config.data.name}"
    return f"{name} {method_title(identity(config))} seed {config.seed}"


def result_line(summary: Summary) -> str:
    if summary.status == DIVERGED:
        return f"diverged: {summary.reason}"
    return (
        f"train {summary.train_top1:.2f}%  test {summary.test_top1_final:.2f}%  "
        f"best {summary.test_top1_best:.2f}%  {summary.images_per_second:,.0f} images/s"
    )
