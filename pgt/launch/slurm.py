"""`hydra/launcher=slurm`: a sweep as an array of a Slurm cluster, with code and configs frozen; by submitit."""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from pgt.config.resources import PACKAGE, conf_dir
from pgt.core import machine
from pgt.core.errors import InputError, Stopped, exit_code
from pgt.core.files import write_text
from pgt.core.signals import STOP_SIGNALS
from pgt.launch.jobs import Sweep, code_in, ended, failed, objective_in, train_job
from pgt.launch.launchers import Assigned, assigned, returned
from pgt.launch.ranks import leave
from pgt.launch.run import run_as_rank
from pgt.runs.sweeps import link, queued

POLL_SECONDS = 5.0
"""Time between two looks at the queue."""

REQUEUE = [
    "code=$?",
    "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
    "job=${job:-$SLURM_JOB_ID}",  # which is the whole array's for the last task of one
    'case $code in 138 | 143) [ "$(squeue --noheader --jobs="$job" --format=%T)" != RUNNING ] || '
    'scontrol requeue "$job" ;; esac',
    "exit $code",
]
"""What a job does after its training, as in launch/one_node.sbatch: a run that was asked to stop goes on later, unless
the job is cancelled or Slurm itself requeues it."""


def launch(
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    sweep: Sweep,
    tasks_per_node: int | None,
    parallel: int | None,
    warning: int,
    setup: Sequence[str],
    python: str | None,
    wait: bool,
    then: str | None,
    **sbatch: Any,
) -> list[JobReturn]:
    """Submit the jobs whose runs have neither ended nor wait in the queue, and say which they are.

    Args:
        config, job_overrides, first, sweep: as `assigned` takes them.
        tasks_per_node, parallel, warning, setup, python, wait, then: see conf/hydra/launcher/slurm.yaml.
        sbatch: options of sbatch, with `_` for `-`.

    Returns:
        The objective of each job if `wait`; NaN otherwise.

    Raises:
        InputError: there is no Slurm or no submitit, Slurm refuses the jobs, or a config is wrong.
    """
    largest = _max_array_size()
    root, jobs = Path(config.hydra.sweep.dir), assigned(config, job_overrides, first, sweep)
    if any(job.config.trainer.force for job in jobs):
        raise InputError("trainer.force=true would start a requeued run over each time: leave it out")
    busy = queued()
    left = [job for job in jobs if not ended(job.folder) and job.folder.resolve() not in busy]
    options = dict(sbatch)
    if int(options.get("nodes") or 1) > 1:
        options["ntasks_per_node"] = tasks_per_node or options.get("gpus_per_node") or 1
    options |= {"signal": f"{STOP_SIGNALS[1].name.removeprefix('SIG')}@{warning}", "requeue": True}
    code = _freeze(root) if left else None
    lines = ["trap : TERM", f"export PYTHONPATH={shlex.quote(str(code))} PYTHONSAFEPATH=1", *setup]
    ids = []
    for start in range(0, len(left), largest):
        part = left[start : start + largest]
        try:
            ids.append(_submit(root / f"array{part[0].number}", part, options, lines, python, parallel))
        except InputError as error:
            if ids:
                raise InputError(
                    f"{start} runs are submitted as job {', '.join(ids)}, the others not: {error}"
                ) from None
            shutil.rmtree(root / "code")
            raise
    _say(jobs, left, busy, ids, root)
    if then and ids:
        last = _submit_last(root, ids, options, [*lines, then])
        print(f"`{then}` follows as job {last}, output in {os.path.relpath(root / 'then.log')}", flush=True)
    if not wait:
        return returned(math.nan for _ in jobs)
    for job in jobs:
        link(root, job.number, job.folder)
    _wait({job.folder.resolve() for job in jobs})
    return returned(objective_in(job.folder) for job in jobs)


def _wait(runs: set[Path]) -> None:
    """Wait until no job in the queue trains any of these runs, or is to."""
    while True:
        with suppress(InputError):  # Slurm may be busy for a while
            if not runs & queued().keys():
                return
        time.sleep(POLL_SECONDS)


def _say(
    jobs: Sequence[Assigned], left: Sequence[Assigned], busy: dict[Path, str], ids: Sequence[str], root: Path
) -> None:
    waiting = sum(job.folder.resolve() in busy for job in jobs)
    done = len(jobs) - len(left) - waiting
    numbers = ", ".join(ids)
    counts = [f"{done} ended" * bool(done), f"{waiting} in the queue already" * bool(waiting)]
    counts.append(f"{len(left)} submitted" + f" as job {numbers}" * bool(left))
    print(f"{len(jobs)} run{'s' * (len(jobs) > 1)}: {', '.join(filter(None, counts))}")
    if left:
        print(f"`squeue --me --jobs={','.join(ids)}` shows them, `scancel {' '.join(ids)}` ends them")
        print(f"logs, and the code that they run: {os.path.relpath(root)}", flush=True)


def _max_array_size() -> int:
    """The number of jobs that this cluster takes in one array.

    Raises:
        InputError: there is no Slurm.
    """
    try:
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise InputError("hydra/launcher=slurm: this machine has no scontrol: submit from a login node") from None
    except subprocess.CalledProcessError as error:
        raise InputError(f"hydra/launcher=slurm: {_last_line(error.stderr)}") from None
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", shown)
    return max(1, int(found[1])) if found else 1001


def _freeze(root: Path) -> Path:
    """Copy this program into a sweep's folder, so that its jobs do not see later edits; returns the folder to import
    from."""
    code = root / "code"
    if not code.exists():  # a sweeper that goes step by step submits several times
        ignored = shutil.ignore_patterns("__pycache__", "conf")
        shutil.copytree(PACKAGE, code / "pgt", ignore=ignored)
        shutil.copytree(conf_dir(), code / "pgt" / "conf")
        write_text(code / "pgt" / machine.COMMIT, machine.commit())
    return code.absolute()


def _submit(
    folder: Path,
    jobs: Sequence[Assigned],
    options: dict[str, Any],
    setup: Sequence[str],
    python: str | None,
    parallel: int | None,
) -> str:
    """Submit jobs as one array; returns its id.

    Args:
        folder: of logs and pickled jobs; `queued` finds the runs of the array by its links.
        options: of sbatch.
        setup: lines of shell before the training.
        python, parallel: see conf/hydra/launcher/slurm.yaml.

    Raises:
        InputError: submitit is not installed, or Slurm refuses the jobs.
    """
    try:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise InputError("hydra/launcher=slurm needs submitit: pip install 'powergrad[slurm]'") from None
    for index, job in enumerate(jobs):
        link(folder, index, job.folder)
    executor = SlurmExecutor(folder, python=python)
    executor.update_parameters(
        job_name="pgt",
        wckey=None,
        time=None,
        comment=str(folder.absolute()),
        additional_parameters={key: value for key, value in options.items() if value is not None},
        setup=list(setup),
        teardown=REQUEUE,
        array_parallelism=parallel or len(jobs),
        stderr_to_stdout=True,
        # see docs/slurm.md for the first one
        srun_args=[
            "--kill-on-bad-exit=0",
            "--open-mode=append",
            f"--cpus-per-task={options.get('cpus_per_task') or 1}",
        ],
    )
    try:
        with redirect_stderr(io.StringIO()):  # the error has what sbatch says
            submitted = executor.map_array(work, jobs)
    except FailedJobError as error:
        shutil.rmtree(folder)
        raise InputError(f"Slurm refuses the jobs: {_last_line(str(error))}") from None
    return str(submitted[0].job_id).partition("_")[0]


def _submit_last(root: Path, after: Sequence[str], options: dict[str, Any], lines: Sequence[str]) -> str:
    """Submit lines of shell as a job that begins when other jobs have ended; returns its id.

    Args:
        root: the sweep's folder, which gets the output.
        after: the ids of the other jobs.
        options: of sbatch, of which those that choose where it runs apply.

    Raises:
        InputError: Slurm refuses the job.
    """
    where = [f"--{key}={options[key]}" for key in ("partition", "account", "qos") if options.get(key) is not None]
    command = ["sbatch", "--parsable", *where, "--job-name=pgt-then", f"--dependency=afterany:{':'.join(after)}"]
    wrapped = [f"--output={root / 'then.log'}", "--wrap=" + "\n".join(lines)]
    done = subprocess.run([*command, *wrapped], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"Slurm refuses the last job; the others are submitted: {_last_line(done.stderr)}")
    return done.stdout.strip().partition(";")[0]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it does not say why"])[-1]


def work(job: Assigned) -> None:
    """Train a job, as a task of a Slurm job. It leaves the process with the exit code, unless that is 0."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # submitit has handlers of its own, which would requeue
    sys.argv = job.command
    try:
        environment = machine.rank_environment(os.environ)
        if environment is None:
            train_job(job.config, job.label, waits=True)
            code = code_in(job.folder)
        else:
            os.environ |= environment
            code = run_as_rank(lambda: job.config)
    except Stopped as stopped:
        print(f"pgt: {job.label}{stopped}", file=sys.stderr)
        code = stopped.exit_code
    except Exception as error:
        failed(job.folder, job.label, error)
        code = exit_code(error)
    if code:
        leave(code)
