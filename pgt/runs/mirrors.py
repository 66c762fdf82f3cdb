"""Weights & Biases and TensorBoard: copies of `metrics.jsonl`, which may fail without harm to the run."""

from __future__ import annotations

import math
import netrc
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pgt.core.errors import InputError
from pgt.core.types import Record, Sink
from pgt.runs.folder import UNFINISHED, Summary, find, last_record, read_config, read_metrics, read_starts
from pgt.runs.labels import title
from pgt.runs.norms import FOLDER, Floats, last_norms

INIT_SECONDS = 60
"""Time limit of `wandb.init`. It is lowered to half the time that the other ranks wait for this one."""
FINISH_SECONDS = 60
BINS = 30
"""Bins of a histogram of filter norms."""


@dataclass(frozen=True)
class About:
    """The facts about a run that a mirror is started with.

    Attributes:
        run_id, group_id: of the run.
        name: of the run, for people.
        folder: of the run.
        config, environment: the contents of config.yaml and environment.json.
        first_step: first step of the records to come. A process that was killed may have written some of them already.
    """

    run_id: str
    group_id: str
    name: str
    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    first_step: int


def check(loggers: Mapping[str, Any]) -> None:
    """Raise an InputError unless the packages and keys that these loggers need are there.

    Args:
        loggers: name -> its options.
    """
    for name in loggers:
        if find_spec(name) is None:
            raise InputError(f"logger={name} needs the package {name}: pip install {name}, or take logger=none")
    if loggers.get("wandb", {}).get("mode") == "online" and not has_wandb_key():
        raise InputError(
            "wandb has no API key: run `wandb login`, export WANDB_API_KEY=..., or add "
            "logger.wandb.mode=offline (`pgt mirror`: --mode offline)"
        )


def has_wandb_key() -> bool:
    """Return whether wandb would find an API key. Without one, it would ask for it on the terminal and wait."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    for path in [named] if named else ["~/.netrc", "~/_netrc"]:
        try:
            entries = netrc.netrc(Path(path).expanduser()).hosts.values()
        except (OSError, netrc.NetrcParseError):
            continue
        if any(login == "user" and key for login, _, key in entries):  # `wandb login` writes this name for any server
            return True
    return False


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


class WandbRun:
    """Writes to a run of Weights & Biases; a resumed run writes to the same one.

    Args:
        about: the run.
        project, entity, mode: as `wandb.init` takes them.
    """

    def __init__(self, about: About, project: str, entity: str | None, mode: str) -> None:
        import wandb

        self._wandb: Any = wandb  # its annotations are narrower than what it takes
        self._folder = about.folder
        self._run = self._wandb.init(
            project=project,
            entity=entity,
            id=about.run_id,
            resume="allow",
            group=about.group_id,
            name=about.name,
            dir=str(about.folder),
            mode=mode,
            reinit="create_new",  # do not join a run of this process that failed to finish
            config={**about.config, "environment": about.environment},
            settings=self._wandb.Settings(
                console="off",
                silent=True,
                init_timeout=min(INIT_SECONDS, 60 * about.config["trainer"]["timeout_minutes"] / 2),
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # an interrupted run logs some steps twice

    def write(self, step: int, record: Record) -> None:
        norms = {
            tag: self._wandb.Histogram(values) for tag, values in norms_by_layer(self._folder, step, record).items()
        }
        self._run.log({"step": step, **_named(record), **norms})

    def close(self) -> None:
        """Add the table of epochs and upload what is left; if that takes over a minute, `wandb sync` can do it."""
        if epochs := read_metrics(self._folder, "epoch"):
            columns = sorted({key for record in epochs for key in record})
            rows = [[record.get(key) for key in columns] for record in epochs]
            self._run.log({"epochs": self._wandb.Table(columns=columns, data=rows)})
        self._run.finish()


class TensorBoard:
    """Writes event files into `<run folder>/tensorboard`. A resumed run replaces the steps that it writes again."""

    def __init__(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, first = about.folder, about.first_step
        self._writer = SummaryWriter(about.folder / "tensorboard", purge_step=first)
        for tag, values in (("config", about.config), ("environment", about.environment)):
            self._writer.add_text(tag, _code_block(values), first)
        last = last_record(about.folder)
        # Interrupted between an epoch's last step and its record: purge_step removes that step's values, so write them
        # again.
        if last.get("step") == first:
            self.write(last.pop("step"), last)

    def write(self, step: int, record: Record) -> None:
        for tag, value in _named(record).items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(tag, value, step)
        for tag, norms in norms_by_layer(self._folder, step, record).items():
            self._writer.add_histogram(tag, norms, step, BINS)

    def close(self) -> None:
        self._writer.close()


def start_mirrors(loggers: Mapping[str, Mapping[str, Any]], about: About, say: Callable[[str], None]) -> list[Sink]:
    """Start a mirror for each logger of the config.

    Args:
        loggers: name -> its options: `wandb` or `tensorboard`.
        about: the run.
        say: takes a line for the user.
    """
    return [Mirror(name, partial(KINDS[name], about, **options), say) for name, options in loggers.items()]


KINDS: dict[str, Callable[..., Sink]] = {"wandb": WandbRun, "tensorboard": TensorBoard}


def send(root: Path, experiment: str | None, name: str, options: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Send the records of runs that have ended to a mirror, as if it had been there from their start.

    A run whose folder holds files of such a mirror already is left alone.

    Args:
        root: the runs folder.
        experiment: only this one, or all that its name is a folder of; a run's own folder, too.
        name, options: of the mirror, as in the config's `logger`.
        say: takes a line for the user.

    Raises:
        InputError: there is no such run, its folder lacks a file, or the mirror has failed.
    """
    check({name: options})
    ended = [found for found in find(root, experiment) if found[1].status != UNFINISHED]
    if not ended:
        raise InputError(f"no run has ended under {root / (experiment or '')}: only those are sent")
    for folder, summary in ended:
        if (folder / name).exists():
            say(f"{folder}: left alone, since {folder / name} is there: delete it to send this run again")
            continue
        try:
            _send(folder, summary, partial(KINDS[name], **options))
        except BaseException as error:
            shutil.rmtree(folder / name, ignore_errors=True)  # what is there in part would be taken for all
            if isinstance(error, InputError) or not isinstance(error, Exception):
                raise
            raise InputError(f"{folder}: {name} has failed ({_reason(error)})") from error
        say(f"{folder}: sent to {name}")


def _send(folder: Path, summary: Summary, start: Callable[[About], Sink]) -> None:
    config = read_config(folder)
    environment = (read_starts(folder) or [{}])[-1]
    name = title(summary.experiment, summary.identity)
    with closing(start(About(summary.run_id, summary.group_id, name, folder, config, environment, 0))) as sink:
        for record in read_metrics(folder):
            sink.write(record.pop("step"), record)


def norms_by_layer(folder: Path, step: int, record: Record) -> dict[str, Floats]:
    """Return the finite filter norms of each layer at the end of an epoch, by tag; histograms take no other values.

    Args:
        folder: of the run.
        step: of the record.
        record: for any but the record of an epoch of a run that records norms, the result is empty.
    """
    if "zeroed_filters" not in record:
        return {}
    finite = {f"norms/{name}": norms[np.isfinite(norms)] for name, norms in last_norms(folder / FOLDER, step).items()}
    return {tag: norms for tag, norms in finite.items() if norms.size}


def _named(record: Record) -> dict[str, Any]:
    """Return a record's values by `step/<key>` or `epoch/<key>`, without NaN and infinite ones."""
    return {
        f"{record['event']}/{key}": value
        for key, value in record.items()
        if key != "event" and not (isinstance(value, float) and not math.isfinite(value))
    }


def _code_block(values: Mapping[str, Any]) -> str:
    """Return a mapping as an indented Markdown code block."""
    from omegaconf import OmegaConf

    return "".join(f"    {line}\n" for line in OmegaConf.to_yaml(OmegaConf.create(dict(values))).splitlines())
