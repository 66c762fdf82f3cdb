"""Config in, run folder out."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgt import data
from pgt.config.identity import group_id, identity, run_id
from pgt.config.schema import Config
from pgt.core import machine as environment
from pgt.core.errors import InputError, TrainingError
from pgt.core.machine import now
from pgt.core.signals import Stop
from pgt.data import DataSet
from pgt.runs import folder as runs
from pgt.runs.console import Console, Screen
from pgt.runs.folder import DIVERGED, FINISHED, Summary
from pgt.runs.labels import method_title
from pgt.runs.mirrors import About
from pgt.runs.sinks import Sinks
from pgt.training import folder as run_folder
from pgt.training.assemble import assemble, set_up_torch
from pgt.training.epochs import run_epochs

if TYPE_CHECKING:
    from pgt.core.types import Loader
    from pgt.training.ranks import Ranks
    from pgt.training.trainer import Trainer


@dataclass(frozen=True)
class Job:
    """A run that has something left to do: what each of the processes that train it is given.

    Attributes:
        config: checked, resolved, final.
        dataset: that the config names.
        summary: as the run begins.
        folder: of the run.
        label: in front of what is printed, as `[2/18]`.
    """

    config: Config
    dataset: DataSet
    summary: Summary
    folder: Path
    label: str


def prepare(config: Config, label: str) -> Job | Summary:
    """What is to be done for a config; its result, where there is one. Starts nothing, writes nothing.

    Raises:
        InputError: as `run`.
    """
    dataset = data.open_set(**data_options(config))
    fresh = _new_summary(config, dataset.manifest)
    folder = Path(config.paths.runs) / (config.experiment or "custom") / fresh.run_id
    before = None if config.trainer.force else runs.read_summary(folder)
    if before is not None and before.manifest != fresh.manifest:
        raise InputError(
            f"{folder} was made from other data ({before.manifest}, now {fresh.manifest}): "
            "add another paths.runs=... to keep both, or trainer.force=true to start over"
        )
    if before is not None and before.status in (FINISHED, DIVERGED):
        _report_earlier(before, fresh, folder, label)
        return before
    if before is not None:
        fresh = replace(fresh, started=before.started)  # what it has measured is its checkpoint's to say
    return Job(config, dataset, fresh, folder, label)


def train(job: Job, ranks: Ranks) -> Summary:
    """Train a job to its end. Each of the ranks calls it; the first one alone writes and speaks.

    Raises:
        InputError, TrainingError: as `run`.
    """
    import torch

    from pgt.training.ranks import check_kernels

    config = job.config
    check_kernels(ranks.device)
    set_up_torch(config)
    torch.manual_seed(config.seed)
    train_loader, test_loader, trainer = assemble(config, job.dataset, ranks)
    with closing(train_loader), closing(test_loader):
        lead_or_follow = _lead if ranks.first else _follow
        return lead_or_follow(job, ranks, trainer, (train_loader, test_loader))


def _follow(job: Job, ranks: Ranks, trainer: Trainer, loaders: tuple[Loader, Loader]) -> Summary:
    """`train` on a later rank."""
    if (earlier := ranks.share(None)) is not None:
        return earlier
    summary = _continued(job.summary, run_folder.resume(job.folder, trainer, loaders[0], ranks.share(None)))
    with Stop() as stop:
        return run_epochs(job.config, trainer, loaders, summary, Sinks([]), _nowhere, stop)


def _lead(job: Job, ranks: Ranks, trainer: Trainer, loaders: tuple[Loader, Loader]) -> Summary:
    """`train` on the first rank."""
    config, train_loader = job.config, loaders[0]
    job.folder.mkdir(parents=True, exist_ok=True)
    with runs.lock(job.folder):
        latest = None if config.trainer.force else runs.read_summary(job.folder)
        if latest is not None and latest.status in (FINISHED, DIVERGED):  # another process ended it while this one loaded
            _report_earlier(latest, job.summary, job.folder, job.label)
            return ranks.share(latest)
        ranks.share(None)
        if config.trainer.force:
            run_folder.clear(job.folder)
        state = run_folder.resume(job.folder, trainer, train_loader, ranks.share(run_folder.load(job.folder)))
        summary = replace(_continued(job.summary, state), world_size=ranks.world_size)
        start = run_folder.record_start(job.folder, config, summary, ranks.device)
        title = f"{job.label}{describe(config)}"
        steps = train_loader.steps_per_epoch
        total_steps = config.recipe.epochs * steps
        first_step = min(state["step"], (summary.epochs + 1) * steps - 1)  # an epoch's record is of its last step
        about = About(summary.run_id, summary.group_id, title, job.folder, asdict(config), start, first_step)
        opened = run_folder.sinks(about, total_steps, state["metrics_size"], config.logger.chosen())
        norms = run_folder.recording(job.folder, trainer, config.record.norms_every, state["step"], total_steps - 1)
        with Stop() as stop, opened as (sink, console, metrics), norms as recorder:
            _announce(console, title, job, trainer, train_loader, state)
            try:
                save = partial(run_folder.save, job.folder, recorder, metrics)
                summary = run_epochs(config, trainer, loaders, summary, sink, save, stop)
            except TrainingError as error:
                kept = runs.read_summary(job.folder) or summary
                runs.write_summary(job.folder, replace(kept, status=DIVERGED, reason=str(error), finished=now()))
                raise TrainingError(f"{job.folder}: {error}") from None
            summary = replace(summary, status=FINISHED, finished=now())
            runs.write_summary(job.folder, summary)
            console.say(f"{job.label}{_result(summary)}")
            if recorder is not None and any(zeroed := recorder.zeroed_out().values()):
                console.say(f"{job.label}{_zeroed(list(zeroed))}")
    return summary


def _nowhere(summary: Summary, state: dict[str, Any], best: bool) -> None:
    """How a rank saves that does not write."""


def _continued(fresh: Summary, state: dict[str, Any]) -> Summary:
    """The summary that a checkpoint left, under this program's commit."""
    return Summary(**{**asdict(fresh), **state["summary"], "commit": fresh.commit})


def _announce(console: Console, title: str, job: Job, trainer: Trainer, loader: Loader, state: dict[str, Any]) -> None:
    world = trainer.ranks.world_size
    earlier_commit = state["summary"].get("commit", job.summary.commit)
    epoch, step = divmod(state["step"], loader.steps_per_epoch)
    begin = f", from epoch {epoch + 1}" if state["step"] else ""
    if step:
        begin += f", step {step + 1}"
    elif state["step"] and epoch > state["summary"]["epochs"]:
        begin = f", from the evaluation of epoch {epoch}"
    size = f"{job.config.recipe.epochs} epochs of {loader.steps_per_epoch} steps"
    shared = f" on {world} devices" if world > 1 else ""
    console.say(f"{title}: {size}{shared}{begin}  -> {job.folder}")
    if earlier_commit != job.summary.commit:
        console.say(f"{title}: begun by commit {earlier_commit}, goes on under {job.summary.commit}")


def _new_summary(config: Config, manifest: str) -> Summary:
    values = identity(config)
    return Summary(
        run_id=run_id(values),
        group_id=group_id(values),
        experiment=config.experiment,
        identity=values,
        seed=config.seed,
        manifest=manifest,
        commit=environment.commit(),
        started=now(),
    )


def _report_earlier(before: Summary, fresh: Summary, folder: Path, label: str) -> None:
    other = f", by commit {before.commit}; this is {fresh.commit}" if before.commit != fresh.commit else ""
    again = "; trainer.force=true starts over" if before.status == DIVERGED else ""
    text = f"{label}{folder}: {before.status} earlier{other}{again}\n{label}{_result(before)}"
    Screen().print(text, markup=False)


def data_options(config: Config) -> dict[str, Any]:
    """What `pgt.data.open_set` takes of a config."""
    options = {key: value for key, value in asdict(config.data).items() if key != "drop_last"}
    if config.data.name in data.FOLDERS:
        options["interpolation"] = config.model.interpolation
    return options


def describe(config: Config) -> str:
    """A run in a few words: `demo/nobn gc+pgt α=0.25 seed 0`."""
    name = config.experiment or f"{config.model.name} on {config.data.name}"
    return f"{name} {method_title(identity(config))} seed {config.seed}"


def _result(summary: Summary) -> str:
    if summary.status == DIVERGED:
        return f"diverged: {summary.reason}"
    return (
        f"train {summary.train_top1:.2f}%  test {summary.test_top1_final:.2f}%  "
        f"best {summary.test_top1_best:.2f}%  {summary.images_per_second:,.0f} images/s"
    )


def _zeroed(counts: list[int]) -> str:
    layers = ", ".join(f"{index} ({count})" for index, count in enumerate(counts, start=1) if count)
    return f"zeroed-out filters: {sum(counts)}, in convolutions {layers}"
