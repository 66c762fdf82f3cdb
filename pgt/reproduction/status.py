"""The state of the runs of a folder, read from run folders, the lists of sweeps and Slurm's queue."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from pgt.core.errors import InputError
from pgt.core.words import counted
from pgt.reproduction.cost import work
from pgt.reproduction.formats import Column, Note, Table, render, table
from pgt.reproduction.groups import no_runs
from pgt.runs.console import Screen
from pgt.runs.folder import (
    DIVERGED,
    ENDED,
    FAILURE,
    FINISHED,
    LOCK,
    Summary,
    holder,
    last_record,
    read_failure,
    read_summary,
    scan,
    was_killed,
)
from pgt.runs.frame import dotted
from pgt.runs.labels import experiment_name, method_label, with_alpha
from pgt.runs.sweeps import FOLDER, SlurmJob, SweepList, queued, read_sweeps

T = TypeVar("T")

WATCH_SECONDS = 10.0
"""Time between two looks of `--watch`: clusters dislike users who ask for the queue more often."""

QUEUED, RUNNING, STOPPED, KILLED = "queued", "running", "stopped", "killed"
FAILED, REFUSED, DAMAGED, NOT_BEGUN = "failed", "refused", "damaged", "not begun"

BAD = (DIVERGED, FAILED, REFUSED, DAMAGED)
"""The statuses that have a reason."""

RETRY = "`pgt status EXPERIMENT --retry-failed` trains failed and refused runs again"
REPEAT = {
    STOPPED: "to resume a stopped run, repeat its command (environment.json in its folder has it)",
    KILLED: "a killed run was ended without time to save; its command goes on from its last checkpoint",
    NOT_BEGUN: "a run that has not begun was left by a sweep; repeat its command (sweep.json in .sweeps/ has it)",
    FAILED: RETRY,
    REFUSED: RETRY,
}
"""What to know of runs of a status."""


@dataclass(frozen=True)
class Standing:
    """The state of one run.

    Attributes:
        run: its folder, which a run that has not begun does not have yet.
        experiment: `custom` for a run without one.
        method, alpha, seed: as in `pgt.runs.frame`; None if they are not known yet.
        status: `finished`, `diverged`, `queued` (in Slurm's queue, or in a sweep that goes on), `running`, `stopped`
            (in order), `killed` (its process had no time to save), `failed`, `refused` (bad input), `damaged` (its
            summary cannot be read), or `not begun` (its sweep has ended before its turn).
        reason: one line, of `diverged`, `failed`, `refused` and `damaged`.
        job: id of the Slurm job that trains it, or is to.
        process: the one that trains it, or that starts its sweep's jobs, as `pgt.runs.folder.holder` names it.
        epochs: whole epochs that are done.
        of: epochs of the whole run.
        best: best test top-1 so far, percent.
        images_per_second: of its whole epochs, or of the first one so far.
        left: seconds of training at the speed so far, evaluations included, for all epochs that are not done.
        silent: seconds since its last record, if it has not ended.
        warning: of its last epoch.
    """

    run: Path
    experiment: str
    status: str
    method: str | None = None
    alpha: float | None = None
    seed: int | None = None
    reason: str | None = None
    job: str | None = None
    process: str = ""
    epochs: int = 0
    of: int | None = None
    best: float | None = None
    images_per_second: float | None = None
    left: float | None = None
    silent: float | None = None
    warning: str | None = None


def standings(root: Path, experiment: str | None = None, must_know: bool = False) -> list[Standing]:
    """The state of every run of a folder, sorted by folder: those that have begun, and those that sweeps are to train.

    If Slurm does not answer, folders alone tell, and if sweeps have been submitted, a warning says so.

    Args:
        root: the runs folder.
        experiment: only this one, or all that its name is a folder of.
        must_know: raise an error in the place of that warning.

    Raises:
        InputError: the experiment is an absolute path, or Slurm does not answer and `must_know` is true.
    """
    whole, within = root.resolve(), Path(experiment or "")
    if within.is_absolute():
        raise InputError(f"{experiment} is no experiment: name it as below the runs folder, as in demo/bn")
    try:
        queue = queued()
    except InputError as error:
        if any((root / FOLDER).glob("*/array*")):  # other runs folders have nothing in a queue
            if must_know:
                raise
            print(f"pgt: warning: jobs in Slurm's queue are not shown as such: {error}", file=sys.stderr)
        queue = {}
    jobs = {run.relative_to(whole): job for run, job in queue.items() if run.is_relative_to(whole)}
    sweeps = sorted(read_sweeps(root), key=lambda sweep: bool(sweep.process))  # one that goes on comes last and wins
    lists = {run: sweep for sweep in sweeps for run in sweep.runs}
    found = {folder.relative_to(root): summary for folder, summary in scan(root, experiment)}
    coming = {run: None for run in [*jobs, *lists] if run not in found and run.is_relative_to(within)}
    return [
        _standing(root, run, summary, jobs.get(run), lists.get(run))
        for run, summary in sorted((found | coming).items())
    ]


def _standing(
    root: Path, run: Path, summary: Summary | InputError | None, job: SlurmJob | None, sweep: SweepList | None
) -> Standing:
    folder = root / run
    if isinstance(summary, Summary):
        one = Standing(
            folder,
            experiment_name(summary.experiment),
            summary.status,
            method=method_label(summary.identity),
            alpha=float(summary.identity["method"]["alpha"]),
            seed=summary.seed,
            reason=summary.reason,
            epochs=summary.epochs,
            of=summary.identity["recipe"]["epochs"],
            best=summary.test_top1_best,
            images_per_second=summary.images_per_second,
            warning=summary.warning,
        )
        if summary.status in ENDED:
            return one
    else:
        one = Standing(folder, str(run.parent), NOT_BEGUN, **(sweep.runs[run] if sweep else {}))
        if summary is not None:
            return replace(one, status=DAMAGED, reason=str(summary))
    process = holder(folder)
    one = _progress(replace(one, process=process, job=job.id if job else None), summary)
    if process or job:
        return replace(one, status=RUNNING if process or (job and job.running) else QUEUED)
    latest = read_summary(folder) if summary is not None else None  # the run may have ended since `summary` was read
    if latest is not None and latest.status in ENDED:
        return _standing(root, run, latest, job, sweep)
    failure = read_failure(folder)
    if sweep and sweep.process and not (failure and _modified(folder / FAILURE) >= sweep.started):
        return replace(one, status=QUEUED, process=sweep.process)
    if failure:
        line = failure.reason.removeprefix(f"{folder}: ").splitlines()[-1]
        return replace(one, status=REFUSED if failure.code == InputError.exit_code else FAILED, reason=line)
    if summary is None and not (folder / LOCK).exists():
        return one
    return replace(one, status=KILLED if was_killed(folder) else STOPPED)


def _modified(path: Path) -> float:
    """When a file was last written, in seconds since the epoch; now, if somebody has just removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _progress(one: Standing, summary: Summary | None) -> Standing:
    """A run that has not ended, with its speed, the time left and how long it has been silent, if they are known."""
    record = last_record(one.run)
    if record:
        one = replace(one, silent=max(0.0, time.time() - _modified(one.run / "metrics.jsonl")))
    speed = one.images_per_second or record.get("images_per_second")
    if summary is None or not speed:
        return one
    rest = work(dotted(summary.identity), summary.epochs)
    left = None if rest.images is None else rest.gpu_seconds(speed)
    return replace(one, images_per_second=speed, left=left)


def counts(found: Sequence[Standing]) -> str:
    """The number of runs of each status: `4 runs: 1 diverged, 3 finished`."""
    numbers = sorted(Counter(one.status for one in found).items())
    return f"{counted(len(found), 'run')}: {', '.join(f'{number} {status}' for status, number in numbers)}"


def status_table(found: Sequence[Standing], root: Path) -> Table:
    """A line for each run; below, how many have each status, the reasons of those that failed, and what to do."""
    columns: Sequence[Column[Standing]] = (
        ("Run", lambda one: str(one.run.relative_to(root))),
        ("Method", lambda one: "" if one.method is None or one.alpha is None else with_alpha(one.method, one.alpha)),
        ("Seed", lambda one: _known(one.seed, str)),
        ("Status", lambda one: one.status),
        ("Epochs", lambda one: _known(one.of, lambda of: f"{one.epochs}/{of}")),
        ("Best top-1", lambda one: _known(one.best, "{:.2f}".format)),
        ("Images/s", lambda one: _known(one.images_per_second, "{:,.0f}".format)),
        ("Left", lambda one: _known(one.left, duration)),
        ("Last record", lambda one: _known(one.silent, lambda seconds: f"{duration(seconds)} ago")),
        ("Where", lambda one: ", ".join(filter(None, [one.job and f"job {one.job}", one.process]))),
    )
    there = {one.status for one in found}
    reasons = [f"{one.run}: {one.status}: {one.reason}" for one in found if one.status in BAD]
    advice = dict.fromkeys(text for status, text in REPEAT.items() if status in there)
    notes = [Note(counts(found), [*reasons, *advice])]
    if warned := [f"{one.run}: {one.warning}" for one in found if one.warning]:
        notes.append(Note("Warnings of the last epoch:", warned))
    return table(found, columns, notes=notes)


def _known(value: T | None, text: Callable[[T], str]) -> str:
    return "" if value is None else text(value)


def command(root: Path, experiment: str | None, as_json: bool, watches: bool) -> None:
    """Print where runs stand: as a table or as JSON, once or until all have ended.

    Raises:
        InputError: there are none.
    """
    while True:
        found = standings(root, experiment)
        if not found:
            raise no_runs(root, experiment)
        if not watches or not any(one.status in (QUEUED, RUNNING) for one in found):
            break
        _show(found, root)
        time.sleep(WATCH_SECONDS)
    if as_json:
        print(json.dumps([asdict(one) for one in found], default=str, indent=2, ensure_ascii=False))
    else:
        print(render([status_table(found, root)], "markdown"))


def _show(found: Sequence[Standing], root: Path) -> None:
    """Show the runs that are neither queued nor finished, as many as fit on the screen, and how many there are of each.

    On anything but a terminal it is the numbers alone.
    """
    now = time.strftime("%H:%M:%S")
    screen = Screen()
    if screen.is_terminal:
        screen.clear()
        open_ones = [one for one in found if one.status not in (QUEUED, FINISHED)]
        lines = render([replace(status_table(open_ones, root), notes=[])], "markdown").splitlines()
        screen.print("\n".join(line[: screen.width] for line in lines[: screen.height - 2]), markup=False)
    print(f"{now}  {counts(found)}", flush=True)


def duration(seconds: float) -> str:
    """A time in one or two units: `3 d 4 h`, `4 h 5 min`, `5 min`, `6 s`."""
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
