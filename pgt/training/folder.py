"""The folder of a run while it trains: written, read back, cleared."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from pgt.config.schema import Config
from pgt.core import machine
from pgt.core.errors import InputError
from pgt.core.files import TEMPORARY, atomic_write, write_json
from pgt.core.types import Loader
from pgt.runs import folder as runs
from pgt.runs import norms as weight_norms
from pgt.runs.console import Console
from pgt.runs.folder import Summary
from pgt.runs.mirrors import end as end_mirrors
from pgt.runs.mirrors import start_mirrors
from pgt.runs.norms import NormsFile
from pgt.runs.sinks import JsonLines, Sinks
from pgt.runs.trackers import About
from pgt.training import checkpoint
from pgt.training.recorder import Recorder, record_format
from pgt.training.trainer import Trainer

LAST, PREVIOUS = CHECKPOINTS = ("checkpoints/last.pt", "checkpoints/previous.pt")
"""Checkpoints to resume from: the last one, or if it cannot be read, the one before."""
WHOLE = {"model", "optimizer", "scaler", "progress", "tally", "alterations", "loss",
         "loader", "skipped", "metrics_size", "summary"}  # fmt: skip
"""Keys that every checkpoint has."""


def clear(folder: Path, loggers: Iterable[str]) -> None:
    """Remove what a run would resume from, and the folders of trackers: of wandb, TensorBoard and these loggers.

    The summary goes first: it counts epochs whose records are in `metrics.jsonl`, and another process may read the run
    meanwhile.
    """
    for name in (
        "summary.json",
        "checkpoints/best.pt",
        *CHECKPOINTS,
        "metrics.jsonl",
        "environment.json",
        runs.FAILURE,
    ):
        (folder / name).unlink(missing_ok=True)
    for name in ("tensorboard", "wandb", *loggers, weight_norms.FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)


def save(
    folder: Path, recorder: Recorder | None, metrics: JsonLines, summary: Summary, state: dict[str, Any], best: bool
) -> None:
    """Write the checkpoint `last.pt`, and the weights as `best.pt` if they are the best so far.

    What was `last.pt` becomes `previous.pt`.

    Args:
        state: of trainer and loader.
        best: whether the epoch that has just ended is the best one.
    """
    if recorder is not None:
        recorder.sync()
    if best:
        checkpoint.save(folder / "checkpoints" / "best.pt", {"model": state["model"]})
    whole = {**state, "metrics_size": metrics.sync(), "summary": asdict(summary)}
    checkpoint.save(folder / LAST, whole, before=folder / PREVIOUS)
    runs.write_summary(folder, summary)


def end(folder: Path, summary: Summary) -> None:
    """Write the summary of a run that has ended, and remove what only a run that resumes needs."""
    runs.write_summary(folder, summary)
    (folder / PREVIOUS).unlink(missing_ok=True)


def load(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint that can be read, on the CPU; None if there is none. Removes what was not written whole.

    Its entry `warning`, if it has one, says that a later one is damaged.

    Raises:
        InputError: the only checkpoint, or both, are damaged.
    """
    for unfinished in (folder / LAST).parent.glob(TEMPORARY):  # by a process that was killed
        unfinished.unlink(missing_ok=True)
    broken: list[InputError] = []
    paths = [path for path in (folder / name for name in CHECKPOINTS) if path.is_file()]
    for path in paths:
        try:
            state = _read(path)
        except InputError as error:
            broken.append(error)
            continue
        if not broken:
            return state
        path.replace(paths[0])  # or the next save would put the damaged one in its place
        return state | {"warning": f"{paths[0]} cannot be read: goes on from {path.name}, the one before it"}
    if len(broken) > 1:
        both = " and ".join(map(str, paths))
        raise InputError(f"the checkpoints {both} are damaged: put one back, or add trainer.force=true to start over")
    if broken:
        raise broken[0]
    return None


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint that has everything to resume from.

    Raises:
        InputError: it is damaged.
    """
    state = checkpoint.load(path, "cpu")
    missing = WHOLE - (state.keys() if isinstance(state, dict) else set())
    if missing:
        raise checkpoint.damaged(path, KeyError(*missing))
    return state


def resume(folder: Path, trainer: Trainer, loader: Loader, state: dict[str, Any] | None) -> dict[str, Any]:
    """Restore trainer and loader from the folder's checkpoint `state`; without one, they stay as they are.

    Returns:
        step: optimizer steps done so far; metrics_size: bytes of `metrics.jsonl` that they wrote; summary: its values;
        warning: None, or what `load` has to say.

    Raises:
        InputError: the checkpoint is damaged.
    """
    if state is None:
        return {"step": 0, "metrics_size": 0, "summary": {}, "warning": None}
    try:
        trainer.load_state_dict(state)
        loader.load_state_dict(state["loader"])
        loader.skipped.update(map(Path, state["skipped"]))  # test images, too: counted, whichever loader has them
        step = trainer.progress.epoch * loader.steps_per_epoch + trainer.progress.steps
        return {"step": step, "warning": state.get("warning"), **{k: state[k] for k in ("metrics_size", "summary")}}
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise checkpoint.damaged(folder / LAST, error) from None


def record_start(folder: Path, config: Config, summary: Summary, device: torch.device) -> dict[str, Any]:
    """Write config.yaml and summary.json, and add this start to environment.json; returns its entry there."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    with atomic_write(folder / "config.yaml") as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(config.model_dump(by_alias=True))).encode())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    start = {"time": machine.now(), "commit": summary.commit, **machine.describe(name, torch.get_num_threads())}
    starts = [*runs.read_starts(folder), start]
    write_json(folder / "environment.json", {"manifest": summary.manifest, "starts": starts})
    runs.write_summary(folder, summary)
    (folder / runs.FAILURE).unlink(missing_ok=True)
    return start


@contextmanager
def sinks(
    about: About, title: str, total_steps: int, metrics_size: int, loggers: dict[str, Any]
) -> Iterator[tuple[Sinks, Console, JsonLines]]:
    """Open all sinks of a run: all of them as one, and separately the console and `metrics.jsonl`.

    Args:
        title: of the run on the console: its name, and its place in a sweep.
    """
    metrics = JsonLines(about.folder / "metrics.jsonl", metrics_size)
    console = Console(title, total_steps, about.folder / "log.txt")
    mirrors = start_mirrors(loggers, replace(about, say=console.say))
    together = Sinks([metrics, *mirrors, console])
    with closing(together), ExitStack() as stack:
        stack.push(lambda kind, error, traceback: end_mirrors(mirrors, about.folder, error))
        yield together, console, metrics


@contextmanager
def recording(folder: Path, trainer: Trainer, every: int, first: int, last: int) -> Iterator[Recorder | None]:
    """A context in which the trainer records norms, unless `every` is 0.

    Args:
        every: steps between two records.
        first, last: the steps that are left. Records of `first` and later steps are removed: they are from a process
            that ended before its checkpoint.

    Raises:
        InputError: the folder has norms that are damaged, or of another network.
    """
    path = folder / weight_norms.FOLDER
    before = weight_norms.read_format(path)
    if not every:
        if before is not None:
            NormsFile(path, before, first).close()
        yield None
        return

    now = record_format(trainer.model)
    if before not in (None, now):
        raise InputError(
            f"{path} holds the norms of another network: delete it, or add trainer.force=true to start over"
        )
    path.mkdir(exist_ok=True)
    write_json(path / weight_norms.LAYERS, now.describe(every))
    with closing(NormsFile(path, now, first)) as file:
        trainer.recorder = Recorder(trainer.model, every, last, file)
        yield trainer.recorder
