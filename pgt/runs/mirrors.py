"""Weights & Biases and TensorBoard: copies of what `metrics.jsonl` holds, which may fail without harm."""

from __future__ import annotations

import math
import netrc
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pgt.core.errors import InputError
from pgt.core.types import Record, Sink
from pgt.runs.folder import last_record, read_metrics
from pgt.runs.norms import FOLDER, Floats, last_norms

INIT_SECONDS = 60
"""That wandb may take to begin; never more than half of what the other ranks wait for this one."""
FINISH_SECONDS = 60


@dataclass(frozen=True)
class About:
    """What a mirror is told of a run.

    Attributes:
        run_id, group_id, name: of the run; the name is for people.
        folder: of the run.
        config, environment: as their files hold them.
        first_step: of the records that are still to come; a process that was killed may have written some of them.
    """

    run_id: str
    group_id: str
    name: str
    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    first_step: int


def check(loggers: Mapping[str, Any]) -> None:
    """Raises InputError unless what the named loggers need is there.

    Args:
        loggers: name -> its options.
    """
    for name in loggers:
        if find_spec(name) is None:
            raise InputError(f"logger={name} needs the package {name}: pip install {name}, or take logger=none")
    if loggers.get("wandb", {}).get("mode") == "online" and not has_wandb_key():
        raise InputError(
            "wandb has no API key: run `wandb login`, export WANDB_API_KEY=..., or add logger.wandb.mode=offline"
        )


def has_wandb_key() -> bool:
    """Whether wandb would find a key; where it does not, it asks on a terminal, and waits."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    for path in [named] if named else ["~/.netrc", "~/_netrc"]:
        try:
            entries = netrc.netrc(Path(path).expanduser()).hosts.values()
        except (OSError, netrc.NetrcParseError):
            continue
        if any(login == "user" and key for login, _, key in entries):  # as `wandb login` writes it for any server
            return True
    return False


class Mirror:
    """A sink that may fail: then it is closed, and that is said once; the run goes on.

    Args:
        name: to call it by.
        start: makes the sink.
        say: where to complain.
    """

    def __init__(self, name: str, start: Callable[[], Sink], say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._sink: Sink | None = None
        self._guarded(lambda: setattr(self, "_sink", start()))

    def write(self, step: int, record: Record) -> None:
        if self._sink is not None:
            sink = self._sink
            self._guarded(lambda: sink.write(step, record))

    def close(self) -> None:
        if self._sink is not None:
            self._guarded(self._sink.close)

    def _guarded(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # whatever a third party's service or disk comes up with
            failed, self._sink = self._sink, None
            if failed is not None:
                with suppress(Exception):
                    failed.close()
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self._say(f"warning: {self._name} has failed and is left alone ({reason}); metrics.jsonl has everything")


class WandbRun:
    """Writes to Weights & Biases, again into the same run when the run goes on.

    Args:
        project, entity, mode: as `wandb.init` takes them.
    """

    def __init__(self, about: About, project: str, entity: str | None, mode: str) -> None:
        import wandb

        self._wandb, self._folder = wandb, about.folder
        self._run = wandb.init(
            project=project,
            entity=entity,
            id=about.run_id,
            resume="allow",
            group=about.group_id,
            name=about.name,
            dir=str(about.folder),
            mode=mode,
            reinit="create_new",  # never into another run of this process that did not end well
            config={**about.config, "environment": about.environment},
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=min(INIT_SECONDS, 60 * about.config["trainer"]["timeout_minutes"] / 2),
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # an interrupted run comes by some steps twice

    def write(self, step: int, record: Record) -> None:
        norms = {tag: self._wandb.Histogram(values) for tag, values in _norms(self._folder, record).items()}
        self._run.log({"step": step, **_named(record), **norms})

    def close(self) -> None:
        """Upload what is left; after a minute without an end `wandb sync` must."""
        if epochs := read_metrics(self._folder, "epoch"):
            columns = sorted({key for record in epochs for key in record})
            rows = [[record.get(key) for key in columns] for record in epochs]
            self._run.log({"epochs": self._wandb.Table(columns=columns, data=rows)})
        self._run.finish()


class TensorBoard:
    """Writes event files into `<run folder>/tensorboard`: where the run goes on, what it writes again counts."""

    def __init__(self, about: About) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = about.folder
        self._writer = EventFileWriter(str(about.folder / "tensorboard"))
        first = about.first_step
        self._add(first, session_log=SessionLog(status=SessionLog.START))  # takes back what is of later steps or of it
        self._text("config", about.config, first)
        self._text("environment", about.environment, first)
        last = last_record(about.folder)
        if last.get("step") == first:  # the epoch's record is still to come, but its last step's is to stay
            self.write(last.pop("step"), last)

    def write(self, step: int, record: Record) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=key, simple_value=value)
            for key, value in _named(record).items()
            if isinstance(value, (int, float))
        ]
        values += [
            Summary.Value(tag=tag, histo=_histogram(norms)) for tag, norms in _norms(self._folder, record).items()
        ]
        self._add(step, summary=Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _text(self, tag: str, value: Any, step: int) -> None:
        """A mapping as indented text, which TensorBoard shows as Markdown code."""
        from omegaconf import OmegaConf
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        text = "".join(f"    {line}\n" for line in OmegaConf.to_yaml(OmegaConf.create(value)).splitlines())
        plugin = SummaryMetadata.PluginData(plugin_name="text")
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
        metadata = SummaryMetadata(plugin_data=plugin)
        shown = Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)
        self._add(step, summary=Summary(value=[shown]))

    def _add(self, step: int, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **what))


def _named(record: Record) -> dict[str, Any]:
    """A record's values under `step/` or `epoch/`, those that are no numbers and not finite left out."""
    event = record["event"]
    kept = {key: value for key, value in record.items() if key != "event"}
    return {
        f"{event}/{key}": value for key, value in kept.items() if not isinstance(value, float) or math.isfinite(value)
    }


def _norms(folder: Path, record: Record) -> dict[str, Floats]:
    """The filters' finite norms by layer at the end of an epoch, where they are recorded: no histogram has others."""
    import numpy as np

    if "zeroed_filters" not in record:
        return {}
    finite = {f"norms/{name}": norms[np.isfinite(norms)] for name, norms in last_norms(folder / FOLDER).items()}
    return {tag: norms for tag, norms in finite.items() if norms.size}


def _histogram(values: Floats) -> Any:
    """Numbers as TensorBoard's histogram."""
    import numpy as np
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    counts, edges = np.histogram(values, bins=30)
    return HistogramProto(
        min=values.min(),
        max=values.max(),
        num=values.size,
        sum=values.sum(),
        sum_squares=np.square(values).sum(),
        bucket_limit=edges[1:],
        bucket=counts,
    )


def start_mirrors(loggers: Mapping[str, Mapping[str, Any]], about: About, say: Callable[[str], None]) -> list[Sink]:
    """A sink for each logger of the config.

    Args:
        loggers: name -> its options: `wandb` or `tensorboard`.
        say: takes a line for the user.
    """
    kinds: dict[str, Callable[..., Sink]] = {"wandb": WandbRun, "tensorboard": TensorBoard}

    def starter(name: str) -> Callable[[], Sink]:
        return lambda: kinds[name](about, **loggers[name])

    return [Mirror(name, starter(name), say) for name in loggers]
