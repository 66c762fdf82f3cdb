"""Mirrors: trackers that get a copy of a run's records, and may fail without harm to the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pgt.core.errors import InputError, TrainingError, exit_code
from pgt.core.own import check_arguments, located
from pgt.core.types import Record, Sink
from pgt.runs.folder import (
    DIVERGED,
    UNFINISHED,
    Summary,
    find,
    last_record,
    read_config,
    read_metrics,
    read_starts,
    read_summary,
)
from pgt.runs.frame import NUMBERS, SUMMARY
from pgt.runs.trackers import END, FAILED, STOPPED, About, TensorBoard, WandbRun, has_wandb_key, wandb_mode

KINDS: dict[str, Callable[..., Sink]] = {"wandb": WandbRun, "tensorboard": TensorBoard}
TARGET = "_target_"
"""The option that names the class of a tracker of the user's own, as in Hydra."""


def check(loggers: Mapping[str, Any]) -> None:
    """Raise an InputError if packages or keys of these loggers are missing, or a class does not take its options.

    Args:
        loggers: name -> its options.
    """
    for name, options in loggers.items():
        if TARGET in options:
            check_arguments(f"logger.{name}", options[TARGET], [None], _arguments(options))
        elif find_spec(name) is None:
            raise InputError(f"logger={name} needs the package {name}: pip install {name}, or take logger=none")
    if "wandb" in loggers and wandb_mode(loggers["wandb"]) in ("online", "shared", "run") and not has_wandb_key():
        raise InputError(
            "wandb has no API key: run `wandb login`, export WANDB_API_KEY=..., or add "
            "logger.wandb.mode=offline (`pgt mirror`: --mode offline)"
        )


def _arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the class of a tracker takes."""
    return {key: value for key, value in options.items() if key != TARGET}


class Mirror:
    """A sink that is given up at its first failure, with one warning; the run goes on.

    Args:
        name: for the warning.
        start: creates the sink.
        say: takes the warning.
    """

    def __init__(self, name: str, start: Callable[[], Sink], say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._sink: Sink | None = None
        with self._guarded():
            self._sink = start()

    def write(self, step: int, record: Record) -> None:
        if self._sink is not None:
            with self._guarded():
                self._sink.write(step, record)

    def close(self) -> None:
        if self._sink is not None:
            with self._guarded():
                self._sink.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a service or a disk may raise anything
            failed, self._sink = self._sink, None
            if failed is not None:
                with suppress(Exception):
                    failed.close()
            self._say(
                f"warning: {self._name} has failed and is left alone ({_reason(error)}); metrics.jsonl has everything"
            )


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def start_mirrors(loggers: Mapping[str, Mapping[str, Any]], about: About) -> list[Sink]:
    """Start a mirror for each logger of the config.

    Args:
        loggers: name -> its options: `wandb`, `tensorboard`, or any name with a `_target_`.
        about: the run.
    """
    return [Mirror(name, partial(_start, name, options, about), about.say) for name, options in loggers.items()]


def _start(name: str, options: Mapping[str, Any], about: About) -> Sink:
    """Start a logger's sink, and make its folder in the run's folder, which marks the records as sent."""
    kind = located(f"logger.{name}", options[TARGET]) if TARGET in options else KINDS[name]
    sink: Sink = kind(about, **_arguments(options))
    (about.folder / name).mkdir(exist_ok=True)
    return sink


def end(mirrors: Sequence[Sink], folder: Path, error: BaseException | None = None) -> None:
    """Tell mirrors how a run has ended: a last record, which `metrics.jsonl` does not have.

    It holds the numbers of `summary.json`, `exit_code`, and `status`: `finished`, `diverged` (with the `reason`),
    `stopped` (the same command goes on) or `failed`.

    Args:
        mirrors: of the run.
        folder: of the run.
        error: by which it ends; None if it has finished.
    """
    summary = read_summary(folder) if mirrors else None
    if summary is None:
        return
    status, step = summary.status, last_record(folder).get("step", 0)
    if status == UNFINISHED:
        status = STOPPED if isinstance(error, KeyboardInterrupt) else FAILED
    names = [name for name in SUMMARY if name in {"epochs", "reason", *NUMBERS}]
    known = {name: value for name in names if (value := getattr(summary, name)) is not None}
    record = {"event": END, "status": status, "exit_code": 0 if error is None else exit_code(error), **known}
    for mirror in mirrors:
        mirror.write(step, record)


def send(root: Path, experiment: str | None, loggers: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Send the records of runs that have ended to mirrors, as if these had been there from the start.

    A run whose folder holds files of such a mirror already is left alone.

    Args:
        root: the runs folder.
        experiment: only this one, or all that its name is a folder of; a run's own folder, too.
        loggers: name -> its options, as in the config's `logger`.
        say: takes a line for the user.

    Raises:
        InputError: there is no such run, its folder lacks a file, or the mirror has failed.
    """
    check(loggers)
    ended = [found for found in find(root, experiment) if found[1].status != UNFINISHED]
    if not ended:
        raise InputError(f"no run has ended under {root / (experiment or '')}: only those are sent")
    for name, options in loggers.items():
        for folder, summary in ended:
            _send(name, options, folder, summary, say)


def _send(name: str, options: Mapping[str, Any], folder: Path, summary: Summary, say: Callable[[str], None]) -> None:
    if (folder / name).exists():
        say(f"{folder}: left alone, since {folder / name} is there: delete it to send this run again")
        return
    try:
        about = About(summary, folder, read_config(folder), (read_starts(folder) or [{}])[-1], say=say)
        with closing(_start(name, options, about)) as sink:
            for record in read_metrics(folder):
                sink.write(record.pop("step"), record)
            end([sink], folder, TrainingError() if summary.status == DIVERGED else None)
    except BaseException as error:
        shutil.rmtree(folder / name, ignore_errors=True)  # what is there in part would be taken for all
        if isinstance(error, InputError) or not isinstance(error, Exception):
            raise
        raise InputError(f"{folder}: {name} has failed ({_reason(error)})") from error
    say(f"{folder}: sent to {name}")
