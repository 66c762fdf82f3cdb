"""Weights & Biases and TensorBoard as sinks: what each of them is told of a run."""

from __future__ import annotations

import math
import netrc
import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgt.core.errors import InputError
from pgt.core.files import write_text
from pgt.core.types import Record
from pgt.runs.folder import DIVERGED, ENDED, Summary, last_record, read_metrics
from pgt.runs.frame import dotted
from pgt.runs.labels import experiment_name, method_label, name_of, title
from pgt.runs.norms import FOLDER, Floats, last_norms

END, STOPPED, FAILED = "end", "stopped", "failed"
"""Event of the last record that a tracker gets, and the values of its `status` besides those of a summary."""

INIT_SECONDS = 60
"""Time limit of `wandb.init`. It is lowered to half the time that the other ranks wait for this one."""
FINISH_SECONDS = 60
BINS = 30
"""Bins of a histogram of filter norms."""


@dataclass(frozen=True)
class About:
    """The facts about a run that a tracker is started with.

    Attributes:
        summary: of the run as it starts: its ids, experiment, identity and seed.
        folder: of the run. A tracker writes into a subfolder that has its name in the config.
        config, environment: the contents of config.yaml and environment.json.
        first_step: first step of the records to come. A killed process may have sent records from there on already.
        resumed: whether an earlier process has written the records before.
        say: prints a line for the user, and logs it.
    """

    summary: Summary
    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    first_step: int = 0
    resumed: bool = False
    say: Callable[[str], None] = print

    @property
    def name(self) -> str:
        """The name of the run for people: `demo/nobn gc+pgt α=0.25 seed 0`."""
        return title(self.summary.experiment, self.summary.identity)

    @property
    def method(self) -> str:
        """The method as the paper's tables name it: `baseline`, `gc+pgt`."""
        return method_label(self.summary.identity)


class WandbRun:
    """Writes to a run of Weights & Biases; a resumed run writes to the same one.

    For each option, the config comes first, then wandb's own environment variable (WANDB_PROJECT, WANDB_MODE, ...),
    then what this class chooses. The id is kept in the run's folder: by it, a resumed run finds its curves.

    Args:
        about: the run.
        project, entity, mode, name, group, notes: as `wandb.init` takes them; None: not set in the config.
        tags: added to the names of network and data set.
    """

    def __init__(
        self,
        about: About,
        project: str | None = None,
        entity: str | None = None,
        mode: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
    ) -> None:
        import wandb

        self._wandb: Any = wandb  # its annotations are narrower than what it takes
        run_id = _wandb_id(about)
        self._about, self._exit_code = about, 1  # until the run is known to have finished
        config = {**about.config, "method": {"name": about.method, **about.config["method"]}}
        tags = tags or [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
        settings = {
            "console": "off",
            "silent": True,
            "init_timeout": min(INIT_SECONDS, 60 * about.config["trainer"]["timeout_minutes"] / 2),
            "finish_timeout": FINISH_SECONDS,
            "finish_timeout_raises": True,
        }
        self._run = self._wandb.init(
            project=project or _default("WANDB_PROJECT", "pgt"),
            entity=entity,
            mode=mode,
            id=run_id,
            resume="allow" if about.resumed else None,  # None replaces what an earlier try has sent
            group=group or _default("WANDB_RUN_GROUP", experiment_name(about.summary.experiment)),
            job_type=_default("WANDB_JOB_TYPE", about.method),
            name=name or _default("WANDB_NAME", about.name),
            tags=[name_of(about.config["model"]), about.config["data"]["name"], *tags],
            notes=notes,
            dir=_default("WANDB_DIR", str(about.folder)),
            reinit="create_new",  # do not join a run of this process that failed to finish
            config={**config, "group_id": about.summary.group_id, "environment": about.environment},
            settings=self._wandb.Settings(
                **{key: value for key, value in settings.items() if f"WANDB_{key.upper()}" not in os.environ}
            ),
        )
        self._files = (
            _offline_files(Path(self._run.settings.wandb_dir), about.folder, run_id) if self._run.offline else []
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("epoch/test_top1", step_metric="step", summary="max")
        if about.resumed and not self._run.offline:  # a killed process has not sent its last records
            for record in read_metrics(about.folder):
                if _row(record["step"], record) >= self._run.step:
                    self.write(record.pop("step"), record)

    def write(self, step: int, record: Record) -> None:
        if record["event"] == END:
            self._end(record)
            return
        norms = {
            tag: self._wandb.Histogram(values)
            for tag, values in norms_by_layer(self._about.folder, step, record).items()
        }
        self._run.log({"step": step, **named(record), **norms}, step=_row(step, record), commit=True)

    def _end(self, record: Record) -> None:
        self._run.summary.update({key: value for key, value in record.items() if key not in ("event", "exit_code")})
        self._exit_code = record["exit_code"]
        if record["status"] == STOPPED:
            self._run.mark_preempting()
        elif record["status"] in ENDED:  # the row of a table would take the number of a later record
            self._add_table()

    def _add_table(self) -> None:
        epochs = read_metrics(self._about.folder, "epoch")
        columns = sorted({key for record in epochs for key in record})
        rows = [[record.get(key) for key in columns] for record in epochs]
        self._run.log({"epochs": self._wandb.Table(columns=columns, data=rows)})

    def close(self) -> None:
        """Upload what is left; if that takes over a minute, `wandb sync` can do it."""
        self._run.finish(exit_code=self._exit_code)
        if self._files:
            command = shlex.join(["wandb", "sync", *map(str, self._files)])
            self._about.say(f"{self._about.name}: wandb was offline: `{command}` uploads the run")


def _row(step: int, record: Record) -> int:
    """Return the number of wandb's row for a record.

    wandb drops a row whose number does not exceed the last one's, and one step may have a record of its own and an
    epoch's. Numbered like this, a resumed run goes on where it was, also offline, and no row is there twice.
    """
    return 2 * step + int(record["event"] == "epoch")


def _wandb_id(about: About) -> str:
    """Return the run's id in wandb. The first start makes it and keeps it in a file: no other folder's run has it."""
    path = about.folder / "wandb-id.txt"
    if path.exists():
        return path.read_text().strip()
    made = f"{about.summary.run_id}-{secrets.token_hex(4)}"
    write_text(path, made)
    return made


def _offline_files(folder: Path, run: Path, run_id: str) -> list[Path]:
    """Return what `wandb sync` needs to upload all starts of a run, in order.

    Args:
        folder: where wandb keeps its files: in the run's folder, or where WANDB_DIR says, beside those of other runs.
        run: the run's folder.
        run_id: its id in wandb.
    """
    own = run / folder.name
    if own.is_dir() and own.samefile(folder):
        return [own]
    return sorted(folder.glob(f"offline-run-*-{run_id}"))


def _default(variable: str, value: str) -> str | None:
    """Return a value, or None if an environment variable of wandb says otherwise: wandb reads it then."""
    return None if os.environ.get(variable) else value


def wandb_mode(options: Mapping[str, Any]) -> str:
    """Return the mode of wandb, by the config's options and its own environment variable.

    Raises:
        InputError: the environment variable has no value that wandb knows.
    """
    mode: str = options.get("mode") or os.environ.get("WANDB_MODE") or "online"
    if mode not in (known := ("online", "offline", "shared", "disabled", "dryrun", "run")):
        raise InputError(f"WANDB_MODE={mode}: export one of {', '.join(known)}, or set logger.wandb.mode")
    return mode


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


class TensorBoard:
    """Writes event files into `<run folder>/tensorboard`. A resumed run replaces the steps that it writes again."""

    def __init__(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._about, first = about, about.first_step
        self._writer: Any = SummaryWriter(about.folder / "tensorboard", purge_step=first)
        for tag, values in (("config", about.config), ("environment", about.environment)):
            self._writer.add_text(tag, _code_block(values), first)
        last = last_record(about.folder) if about.resumed else {}
        # Interrupted between an epoch's last step and its record: purge_step removes that step's values, so write them
        # again.
        if last.get("step") == first:
            self.write(last.pop("step"), last)

    def write(self, step: int, record: Record) -> None:
        numbers = {tag: value for tag, value in named(record).items() if isinstance(value, (int, float))}
        if record["event"] == END:
            if record["status"] not in ENDED:  # it will be resumed
                return
            numbers = {tag: value for tag, value in numbers.items() if isinstance(value, float)}  # what was measured
            self._add_hyperparameters(numbers, record["status"])
        for tag, value in numbers.items():
            self._writer.add_scalar(tag, value, step)
        for tag, norms in norms_by_layer(self._about.folder, step, record).items():
            self._writer.add_histogram(tag, norms, step, BINS)

    def _add_hyperparameters(self, metrics: Mapping[str, float], status: str) -> None:
        """Add what TensorBoard's tab HPARAMS shows: the run's identity, tags of final numbers, and status."""
        from tensorboard.plugins.hparams.api_pb2 import Status
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams

        identity = self._about.summary.identity
        chosen = {"method": self._about.method, "seed": identity["seed"], **dotted(identity)}
        plain = {key: value if isinstance(value, (int, float)) else str(value) for key, value in chosen.items()}
        parts = hparams(plain, metrics)
        if status == DIVERGED:
            closing = parts[-1].value[0].metadata.plugin_data
            session = HParamsPluginData.FromString(closing.content)
            session.session_end_info.status = Status.Value("STATUS_FAILURE")
            closing.content = session.SerializeToString()
        for part in parts:
            self._writer.file_writer.add_summary(part)

    def close(self) -> None:
        self._writer.close()


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


def named(record: Record) -> dict[str, Any]:
    """Return a record's values by `step/<key>` or `epoch/<key>`, without null, NaN and infinite ones."""
    return {
        f"{record['event']}/{key}": value
        for key, value in record.items()
        if key != "event" and value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def _code_block(values: Mapping[str, Any]) -> str:
    """Return a mapping as an indented Markdown code block."""
    from omegaconf import OmegaConf

    return "".join(f"    {line}\n" for line in OmegaConf.to_yaml(OmegaConf.create(dict(values))).splitlines())
