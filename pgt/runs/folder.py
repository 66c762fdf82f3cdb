"""A run's folder: its summary, its records and its lock. No torch."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pgt.core.errors import HeldError, InputError, as_input_error
from pgt.core.files import write_json, writing

SCHEMA_VERSION = 1

UNFINISHED, FINISHED, DIVERGED = "unfinished", "finished", "diverged"
ENDED = (FINISHED, DIVERGED)
"""The statuses of a run that is not resumed."""


@dataclass
class Summary:
    """`summary.json`: what a run came to. Accuracies in percent; None until measured.

    Attributes:
        identity: the config values behind `run_id`.
        status: `unfinished`, `finished` or `diverged`.
        epochs: epochs done.
        train_top1, train_loss: averaged over the last epoch's training batches while the weights changed.
        test_top1_best: over all epochs; `test_top1_final` and the rest are the last epoch's.
        test_loss_alpha: cross-entropy at α·z.
        test_ece, test_ece_alpha: expected calibration error at z and at α·z, percent.
        images_per_second: training speed, evaluation apart.
        skipped_files: images left out because they could not be read.
        manifest: names the data (see `pgt.data.DataSet`).
        commit: of this program, with `+` if the tree was not clean; its version if installed without git.
        started, finished: ISO 8601, UTC.
        reason: why a run diverged.
        warning: of the last epoch, if there was one: files were left out, or the network learns nothing so far.
    """

    run_id: str
    group_id: str
    experiment: str | None
    identity: dict[str, Any]
    seed: int
    manifest: str
    commit: str
    started: str
    status: str = UNFINISHED
    epochs: int = 0
    train_top1: float | None = None
    train_loss: float | None = None
    test_top1_best: float | None = None
    test_top1_final: float | None = None
    test_top5_final: float | None = None
    test_loss: float | None = None
    test_loss_alpha: float | None = None
    test_logit_norm: float | None = None
    test_ece: float | None = None
    test_ece_alpha: float | None = None
    images_per_second: float | None = None
    skipped_files: int = 0
    world_size: int = 1
    finished: str | None = None
    reason: str | None = None
    warning: str | None = None
    version: int = SCHEMA_VERSION


NAMES = tuple(item.name for item in fields(Summary))


def write_summary(folder: Path, summary: Summary) -> None:
    """Replace the folder's `summary.json`."""
    write_json(folder / "summary.json", asdict(summary))


def read_summary(folder: Path) -> Summary | None:
    """The folder's summary, or None if there is none.

    Raises:
        InputError: a summary that cannot be read.
    """
    path = folder / "summary.json"
    try:
        values = json.loads(path.read_bytes())
        if values["version"] != SCHEMA_VERSION:
            raise InputError(f"{path} has schema version {values['version']}, this pgt reads {SCHEMA_VERSION}")
        return Summary(**{name: values[name] for name in NAMES if name in values})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        kind = type(error).__name__
        raise InputError(
            f"cannot read {path} ({kind}): delete this file, and its run goes on from its checkpoint"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's `config.yaml`.

    Raises:
        InputError: it is missing or damaged.
    """
    from omegaconf import OmegaConf  # not for a command that only reads summaries

    path = folder / "config.yaml"
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(config, dict)
    except FileNotFoundError:
        raise InputError(f"there is no {path}: copy it beside its summary.json") from None
    except Exception as error:  # the errors of YAML and OmegaConf have no common base class
        raise InputError(f"cannot read {path} ({type(error).__name__}): it is damaged") from None
    return dict(config)


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Read the starts of a run from `environment.json`, the first one first; empty if there is no such file.

    Raises:
        InputError: it is damaged.
    """
    path = folder / "environment.json"
    try:
        return [dict(start) for start in json.loads(path.read_text())["starts"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        kind = type(error).__name__
        raise InputError(f"cannot read {path} ({kind}): delete it, and its run goes on without its history") from None


FAILURE = "failure.json"
"""File in a run's folder that says why its last job failed; removed when the run goes on."""


class Failure(NamedTuple):
    """The way in which the job of a run failed.

    Attributes:
        code: the exit code that it stands for.
        reason: in words.
        command: the command line that the job belonged to, word by word.
    """

    code: int
    reason: str
    command: list[str]


def write_failure(folder: Path, failure: Failure) -> None:
    """Note in a run's folder that its job failed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FAILURE, failure._asdict())


def read_failure(folder: Path) -> Failure | None:
    """The failure that `write_failure` has noted; None if the run has not failed, or goes on."""
    try:
        values = json.loads((folder / FAILURE).read_text())
        return Failure(int(values["code"]), str(values["reason"]), list(values["command"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def scan(root: Path, experiment: str | None = None) -> Iterator[tuple[Path, Summary | InputError | None]]:
    """Every run under `root`, sorted by folder: its folder and its summary.

    Instead of a summary it yields the error of one that cannot be read, and None for a run that has none yet.

    Args:
        root: the runs folder.
        experiment: only this one, or all that its name is a folder of (`demo` finds `demo/bn`).
    """
    for name, inner, files in os.walk(root / experiment if experiment else root):
        inner[:] = sorted(folder for folder in inner if not folder.startswith("."))
        if not {"summary.json", FAILURE, LOCK} & set(files):
            continue
        inner.clear()  # no run lies inside another one
        try:
            yield Path(name), read_summary(Path(name))
        except (InputError, OSError) as error:
            yield Path(name), as_input_error(error)


def find(root: Path, experiment: str | None = None) -> list[tuple[Path, Summary]]:
    """Folder and summary of every run under `root` that has one, as `scan`.

    A run whose summary cannot be read is left out, with a warning.
    """
    found = []
    for folder, summary in scan(root, experiment):
        if isinstance(summary, Summary):
            found.append((folder, summary))
        elif summary is not None:
            _warn(str(summary))
    return found


@cache
def _warn(text: str) -> None:
    """Print a warning once, however often a command reads the same runs."""
    print(f"pgt: warning: a run is left out: {text}", file=sys.stderr)


def read_metrics(folder: Path, event: str = "") -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` in order; a last line that a crash cut short is left out.

    Args:
        event: only the records of this `event`; the many others are not parsed, which saves most of the time.

    Raises:
        InputError: there is no such file, or a line of it is no record.
    """
    path = folder / "metrics.jsonl"
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise InputError(f"there is no {path}: copy it beside its summary.json") from None
    records = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        if event and f'"event": "{event}"' not in line:
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            raise InputError(f"{path}, line {number}: no record; the file is damaged") from None
    return records


TAIL = 1 << 16
"""Bytes that hold the last records of a file."""


def last_record(folder: Path) -> dict[str, Any]:
    """The newest whole record of `metrics.jsonl`, read from its end; empty if there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        with suppress(ValueError):
            if line.endswith(b"\n") and isinstance(record := json.loads(line), dict):
                return record
    return {}


def read_epochs(folder: Path, epochs: int) -> list[dict[str, Any]]:
    """The records of a run's first `epochs` epochs, as many as its summary counts.

    With `epochs` 0, the file is not read: a run that has just begun has a summary before it has a `metrics.jsonl`.

    Raises:
        InputError: `metrics.jsonl` is damaged, or lacks some of them.
    """
    if not epochs:
        return []
    found = read_metrics(folder, "epoch")[:epochs]
    if [record["epoch"] for record in found] != list(range(epochs)):
        raise InputError(f"{folder / 'metrics.jsonl'} lacks epochs that summary.json counts: the file is damaged")
    return found


LOCK = "lock"
"""In a run's folder, and in that of a sweep: held by the process that trains the run, or starts the sweep's jobs. It
names the process, and is emptied when that ends properly."""

LOCK_SECONDS = 10
"""How long to wait for a run's folder: the data workers of a killed process hold it for some seconds."""


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder, or a sweep's, for this process.

    Raises:
        HeldError: another process holds it, and keeps it for `LOCK_SECONDS`.
        InputError: the file system does not support flock.
    """
    with (folder / LOCK).open("a+") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise held(folder, holder(folder) or "a process that has just ended") from None
                time.sleep(0.2)
            except OSError as error:
                raise InputError(
                    f"the file system of {folder} knows no locks ({error.strerror}): mount it with flock, or set "
                    "paths.runs to another one"
                ) from None
        try:
            with writing(folder / LOCK):
                file.truncate(0)
                os.write(file.fileno(), f"{platform.node()}, process {os.getpid()}".encode())
                os.fsync(file.fileno())  # on NFS, other machines see it only then
            yield
        finally:
            with suppress(OSError):
                file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)


def was_killed(folder: Path) -> bool:
    """Whether the last process that held a folder, which none holds now, ended without releasing it."""
    try:
        return (folder / LOCK).stat().st_size > 0
    except FileNotFoundError:
        return False


def held(folder: Path, process: str) -> HeldError:
    """Make the error for a run that another process is training: the one that `holder` names."""
    return HeldError(f"{folder} is being trained by another process ({process}): wait for it, or stop it")


NAME_SECONDS = 1
"""How long to wait for the name of a process that holds a folder: it takes the lock, and then writes its name."""


def holder(folder: Path) -> str:
    """The process that holds a folder, as `lock` names it (`node7, process 123`).

    It is empty if no process holds it, or if the file system lacks flock; "a process" if the one that does has written
    no name within `NAME_SECONDS`.
    """
    deadline = time.monotonic() + NAME_SECONDS
    while (name := _holder_now(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return "a process" if name is None else name


def _holder_now(folder: Path) -> str | None:
    """As `holder`, at this moment: None if the process that holds the folder has written no name yet."""
    try:
        with (folder / LOCK).open() as file:  # opened at each look, since NFS asks for changes then
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or None
            except OSError:  # the file system does not support flock
                return ""
            return ""
    except FileNotFoundError:
        return ""
