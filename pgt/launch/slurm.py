"""`hydra/launcher=slurm`: a sweep as an array of a Slurm cluster, with code and configs frozen; by submitit."""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import shutil
import signal
import subprocess  # nosec B404  # only for sbatch, without a shell
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from itertools import count
from pathlib import Path
from typing import Any

from pgt.config.resources import PACKAGE, conf_dir, repository_folder, sources
from pgt.core import machine
from pgt.core.errors import InputError, Stopped, exit_code
from pgt.core.files import write_text
from pgt.core.signals import STOP_SIGNALS
from pgt.core.words import counted
from pgt.launch.one_job import LaunchedJob, code_in, ended, failed, objective_in, train_job
from pgt.launch.processes import leave
from pgt.launch.run import run_as_rank
from pgt.runs.sweeps import ask_slurm, link, queued

POLL_SECONDS = 5.0
"""Time between two looks at the queue."""

TRAINING_ONLY = re.compile(r"node\w*|ntasks\w*|\w*gpu\w*|gres\w*|tres\w*|exclusive|dependency|job_name|signal|requeue")
"""The options of sbatch that are not for the last job, of `hydra.launcher.then`."""

REQUEUE = [
    "code=$?",
    "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
    "job=${job:-$SLURM_JOB_ID}",  # which is the whole array's for the last task of one
    "case $code in 138 | 143)",
    "  for _ in 1 2 3 4 5; do",
    '    if state=$(squeue --noheader --jobs="$job" --format=%T); then',
    '      [ "$state" = RUNNING ] || break',
    '      scontrol requeue "$job" && break',
    "    fi",
    "    sleep 5",
    "  done ;;",
    "esac",
    "exit $code",
]
"""Lines of shell after the training, as in launch/one_node.sbatch: a run that was asked to stop is requeued, unless the
job is cancelled or Slurm itself requeues it. A Slurm that does not answer is asked five times."""


def launch(jobs: Sequence[LaunchedJob], sweep: Path, *, wait: bool, then: str | None, **options: Any) -> list[float]:
    """Submit the jobs whose runs have not ended and are not in the queue yet, and print which jobs Slurm made of them.

    Args:
        sweep: the folder of the sweep, which gets logs and the code that the jobs run.
        wait, then, options: see conf/hydra/launcher/slurm.yaml.

    Returns:
        The objective of each job if `wait`; NaN otherwise.

    Raises:
        InputError: there is no Slurm or no submitit, or Slurm refuses the jobs.
    """
    largest = _max_array_size()
    if any(job.config.trainer.force for job in jobs):
        raise InputError("trainer.force=true would start a requeued run over each time: leave it out")
    queue = queued(ending=True)
    going = [job for job in jobs if not ended(job.folder)]
    busy = {job.number: queue[run] for job in going if (run := job.folder.resolve()) in queue}
    left = [job for job in going if job.number not in busy]
    submission = _Submission(sweep, **options)
    ids = submission.submit(left, largest)
    counts = {"ended": len(jobs) - len(going), "in the queue already": len(busy)}
    said = [f"{count} {what}" for what, count in counts.items() if count]
    said.append(f"{len(left)} submitted" + f" as job {', '.join(ids)}" * bool(ids))
    print(f"{counted(len(jobs), 'run')}: {', '.join(said)}")
    if ending := sum(job.ending for job in busy.values()):
        again = "unless Slurm requeues them, give this command again in a minute"
        print(f"jobs of these that are ending: {ending}; {again}")
    if ids:
        print(f"`squeue --me --jobs={','.join(ids)}` shows them, `scancel {' '.join(ids)}` ends them")
        print(f"logs, and the code that they run: {os.path.relpath(sweep)}", flush=True)
    arrays = dict.fromkeys([*ids, *(job.id.partition("_")[0] for job in busy.values())])
    if then and arrays:
        last = submission.submit_last(then, [*arrays])
        print(f"`{then}` follows as job {last}, output in {os.path.relpath(sweep / 'then.log')}", flush=True)
    elif then:
        print(f"`{then}` is not submitted: all runs have ended", flush=True)
    if not wait:
        return [math.nan] * len(jobs)
    for job in jobs:
        link(sweep, job.number, job.folder)
    _wait({job.folder.resolve() for job in jobs})
    return [objective_in(job.folder) for job in jobs]


def _wait(runs: set[Path]) -> None:
    """Wait until no job of the queue trains, or is to train, any of these runs."""
    while True:
        with suppress(InputError):  # Slurm may be busy for a while
            if not runs & queued(ending=True).keys():
                return
        time.sleep(POLL_SECONDS)


def _max_array_size() -> int:
    """The number of jobs that this cluster takes in one array.

    Raises:
        InputError: there is no Slurm.
    """
    shown = ask_slurm("scontrol", "show", "config")
    if not shown:
        raise InputError("hydra/launcher=slurm: this machine has no scontrol: submit from a login node")
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", shown)
    return max(1, int(found[1])) if found else 1001


class _Submission:
    """Submits the jobs of a sweep, all with the same options.

    Args:
        sweep: the folder of the sweep.
        tasks_per_node, parallel, warning, setup, python: see conf/hydra/launcher/slurm.yaml.
        sbatch: options of sbatch, with `_` for `-`.
    """

    def __init__(
        self,
        sweep: Path,
        *,
        tasks_per_node: int | None,
        parallel: int | None,
        warning: int,
        setup: Sequence[str],
        python: str | None,
        **sbatch: Any,
    ) -> None:
        self._sweep, self._code = sweep, sweep.absolute() / "code"
        self._parallel, self._python = parallel, python
        given = {key.replace("-", "_"): value for key, value in sbatch.items()}
        self._options = {key: value for key, value in given.items() if value is not None and value is not False}
        if int(self._options.get("nodes", 1)) > 1:
            gpus = str(self._options.get("gpus_per_node", 1)).rpartition(":")[2]  # 2, of a100:2, too
            self._options["ntasks_per_node"] = tasks_per_node or max(1, int(gpus))
        self._options |= {"signal": f"{STOP_SIGNALS[1].name.removeprefix('SIG')}@{warning}", "requeue": True}
        # Modules of the user's own are found in the order in which this process finds them, see `jobs.own_files`.
        path = [self._code, os.environ.get("PYTHONPATH", ""), Path.cwd(), *sources().own]
        found = os.pathsep.join(filter(None, map(str, path)))
        self._lines = ["trap : TERM", f"export PYTHONPATH={shlex.quote(found)} PYTHONSAFEPATH=1", *setup]

    def submit(self, jobs: Sequence[LaunchedJob], largest: int) -> list[str]:
        """Submit jobs as arrays of at most `largest` jobs; returns the ids of the arrays.

        Raises:
            InputError: submitit is not installed, or Slurm refuses an array; the message names those submitted before.
        """
        ids = list[str]()
        for start in range(0, len(jobs), largest):
            try:
                with self._frozen():
                    ids.append(self._array(jobs[start : start + largest]))
            except InputError as error:
                if ids:
                    done = f"{start} runs are submitted as job {', '.join(ids)}, the others not"
                    raise InputError(f"{done}: {error}") from None
                raise
        return ids

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """A context for a submission: the code is frozen before the first one, and removed if Slurm refuses that."""
        if self._code.exists():  # a sweep that has several arrays, or goes step by step, submits several times
            yield
            return
        self._freeze()
        try:
            yield
        except InputError:
            shutil.rmtree(self._code)
            raise

    def _freeze(self) -> None:
        """Copy this program into the sweep's folder, so that its jobs do not see later edits."""
        package = self._code / "pgt"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "conf", "published"))
        shutil.copytree(conf_dir(), package / "conf")
        shutil.copytree(repository_folder("results/published"), package / "published")  # for `then`
        write_text(package / machine.COMMIT, machine.commit())

    def _array(self, jobs: Sequence[LaunchedJob]) -> str:
        """Submit jobs as one array; returns its id."""
        try:
            from submitit import SlurmExecutor
            from submitit.core.utils import FailedJobError
        except ImportError:
            raise InputError("hydra/launcher=slurm needs submitit: pip install submitit") from None
        names = (self._sweep.absolute() / f"array{number}" for number in count(jobs[0].number))
        folder = next(name for name in names if not name.exists())  # others are there if a sweep goes on
        for index, job in enumerate(jobs):
            link(folder, index, job.folder)  # by which `queued` finds the runs of the array
        executor = SlurmExecutor(folder, python=self._python)
        executor.update_parameters(
            job_name="pgt",
            wckey=None,
            time=None,
            comment=str(folder),
            additional_parameters=self._options,
            setup=self._lines,
            teardown=REQUEUE,
            array_parallelism=self._parallel or len(jobs),
            stderr_to_stdout=True,
            srun_args=[
                "--kill-on-bad-exit=0",  # docs/slurm.md says why
                "--open-mode=append",
                f"--cpus-per-task={self._options.get('cpus_per_task', 1)}",
            ],
        )
        try:
            with redirect_stderr(io.StringIO()):  # the error has what sbatch says
                submitted = executor.map_array(work, jobs)
        except FailedJobError as error:
            shutil.rmtree(folder)
            raise InputError(f"Slurm refuses the jobs: {_reason(str(error))}") from None
        return str(submitted[0].job_id).partition("_")[0]

    def submit_last(self, line: str, after: Sequence[str]) -> str:
        """Submit a line of shell as a job that begins when other jobs have ended; returns its id.

        Args:
            after: ids of these jobs.

        Raises:
            InputError: Slurm refuses the job.
        """
        options = [f"--dependency=afterany:{':'.join(after)}", f"--output={self._sweep / 'then.log'}"]
        shared = {key: value for key, value in self._options.items() if not TRAINING_ONLY.fullmatch(key)}
        options += [f"--{key.replace('_', '-')}" + f"={value}" * (value is not True) for key, value in shared.items()]
        script = "\n".join([*self._lines, line])
        command = ["sbatch", "--parsable", "--job-name=pgt-then", *options, f"--wrap={script}"]
        with self._frozen():
            done = subprocess.run(command, capture_output=True, text=True)  # nosec B603  # the user's own line, options
            if done.returncode:
                raise InputError(f"Slurm refuses the last job; the others are in the queue: {_reason(done.stderr)}")
        return done.stdout.strip().partition(";")[0]


def _reason(text: str) -> str:
    """Join the lines that sbatch prints. The plugin of a site gives its reason before sbatch's own last line."""
    lines = (re.sub(r"^sbatch: (error|fatal): ", "", line).strip() for line in text.splitlines())
    return "; ".join(filter(None, lines)) or "it does not say why"


def work(job: LaunchedJob) -> None:
    """Train a job, as a task of a Slurm job. It leaves the process with the exit code, unless that is 0."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # submitit has handlers of its own, which would requeue
    sys.argv = job.command
    try:
        environment = machine.rank_environment(os.environ)
        if environment is None:
            train_job(job.config, job.folder, job.label, waits=True)
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
