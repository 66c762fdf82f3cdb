"""Decides whether a run is left to do before torch is imported, so that a finished run answers at once."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgt import data
from pgt.config.grammar import written
from pgt.config.identity import group_id, identity, run_id, with_files
from pgt.config.resources import conf_dir, conf_file, is_choice, read_conf
from pgt.config.schema import Config
from pgt.core import machine
from pgt.core.errors import InputError
from pgt.core.registry import DATA_SETS
from pgt.data import DataSet
from pgt.runs import folder as runs
from pgt.runs.console import Screen
from pgt.runs.folder import DIVERGED, ENDED, Summary
from pgt.runs.labels import experiment_name, title
from pgt.runs.norms import FOLDER as NORMS


@dataclass(frozen=True)
class Job:
    """A run that is left to train.

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


_at_hand: dict[str, DataSet] | None = None
"""Within `listing_once`: the image folders that have been listed, by their options."""


@contextmanager
def listing_once() -> Iterator[None]:
    """A context in which each image folder is listed once, which takes long on a network's disk.

    A run needs the list for its folder and for its batches. An inner context does not use the lists of the outer one.
    """
    global _at_hand
    before, _at_hand = _at_hand, {}
    try:
        yield
    finally:
        _at_hand = before


def open_data(config: Config) -> DataSet:
    """Find and check the data set of a config, see `listing_once`.

    Raises:
        InputError, OSError: as `pgt.data.open_set`.
    """
    options = data_options(config)
    dataset = (_at_hand or {}).get(repr(options)) or data.open_set(**options)
    if _at_hand is not None and dataset.files:
        _at_hand[repr(options)] = dataset
    return dataset


def folder_of(config: Config) -> Path:
    """The folder of the config's run. It lists the files of an image folder, which are part of the run's identity.

    Raises:
        InputError, OSError: the data cannot be used.
    """
    if not DATA_SETS[config.data.name].any_files:
        return _folder(config, identity(config))
    return _folder(config, with_files(identity(config), open_data(config).files))


def _folder(config: Config, values: Mapping[str, Any]) -> Path:
    return Path(config.paths.runs) / experiment_name(config.experiment) / run_id(values)


def prepare(config: Config, label: str = "") -> Job | Summary:
    """The job of a config, or its summary if it has finished or diverged before. Writes nothing.

    Raises:
        InputError: the data cannot be used, or the run was made from other data.
    """
    dataset = open_data(config)
    fresh = _new_summary(config, with_files(identity(config), dataset.files), dataset.manifest)
    folder = _folder(config, fresh.identity)
    before = None if config.trainer.force else runs.read_summary(folder)
    if before is not None and before.manifest != fresh.manifest:
        raise InputError(
            f"{folder} was made from other data ({before.manifest}, now {fresh.manifest}): "
            "add another paths.runs=... to keep both, or trainer.force=true to start over"
        )
    if before is not None and (moved := _other_root(config, folder)):
        Screen().print(f"{label}{folder}: {moved}, the same data ({fresh.manifest})", markup=False)
    if before is not None and before.status in ENDED:
        report_earlier(config, before, fresh, folder, label)
        return before
    if before is not None:
        fresh = replace(fresh, started=before.started)  # the checkpoint says what has been measured
    return Job(config, dataset, fresh, folder, label)


def _other_root(config: Config, folder: Path) -> str | None:
    """Words about the folder of the data, if it is another one than the run's config.yaml names."""
    root = getattr(config.data, "root", None)
    if root is None:
        return None
    try:
        before = str(runs.read_config(folder)["data"]["root"])
    except (InputError, KeyError, TypeError):  # config.yaml is missing or damaged; this start writes it anew
        return None
    return None if Path(before).resolve() == Path(root).resolve() else f"data.root was {before} and is now {root}"


def _new_summary(config: Config, values: dict[str, Any], manifest: str) -> Summary:
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


def report_earlier(config: Config, before: Summary, fresh: Summary, folder: Path, label: str) -> None:
    """Print the result of a run that ended earlier, and which records it lacks that the config asks for."""
    other = f", by commit {before.commit}; this is {fresh.commit}" if before.commit != fresh.commit else ""
    again = "; trainer.force=true starts over" if before.status == DIVERGED else ""
    lines = [f"{folder}: {before.status} earlier{other}{again}", result_line(before), *_not_recorded(config, folder)]
    Screen().print("\n".join(label + line for line in lines), markup=False)


def _not_recorded(config: Config, folder: Path) -> Iterator[str]:
    """A line for each kind of record that the config asks for and that a run, which has ended, does not have."""
    if config.record.norms_every and not (folder / NORMS).exists():
        yield (
            "it has ended without a record of norms: trainer.force=true trains it again, with "
            f"record.norms_every={config.record.norms_every}"
        )
    for name, options in config.logger.chosen().items():
        if not (folder / name).exists() and is_choice("logger", name):
            command = _mirror_command(config, folder, name, options)
            yield f"its records have not been sent to {name}: `{command}` sends them"


def _mirror_command(config: Config, folder: Path, name: str, options: Mapping[str, Any]) -> str:
    """The command that sends a run's records to a logger with the options that its config gives."""
    file, defaults = conf_file(f"logger/{name}"), read_conf(f"logger/{name}").get(name) or {}
    given = [f"logger.{name}.{key}={written(value)}" for key, value in options.items() if value != defaults.get(key)]
    words = ["pgt", "mirror", name, str(folder.relative_to(config.paths.runs)), *given]
    if config.paths.runs != "runs":
        words += ["--runs", config.paths.runs]
    if not file.is_relative_to(conf_dir()):
        words += ["--config-dir", str(file.parents[len(Path(name).parts)])]
    return shlex.join(words)


def data_options(config: Config) -> dict[str, Any]:
    """The arguments of `pgt.data.open_set` that a config gives."""
    options = {key: value for key, value in config.data.model_dump().items() if key != "drop_last"}
    if config.data.name in data.FOLDERS:
        options["interpolation"] = config.model.interpolation
        if options["interpolation"] is None:
            from pgt.models import interpolation  # imports torch; other networks' configs say it

            options["interpolation"] = interpolation(config.model.name)
    return options


def describe(config: Config) -> str:
    """The title of a run."""
    return title(config.experiment, identity(config))


def result_line(summary: Summary) -> str:
    if summary.status == DIVERGED:
        return f"diverged: {summary.reason}"
    return (
        f"train {summary.train_top1:.2f}%  test {summary.test_top1_final:.2f}%  "
        f"best {summary.test_top1_best:.2f}%  {summary.images_per_second:,.0f} images/s"
    )
