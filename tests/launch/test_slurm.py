"""The templates of launch/ on a real Slurm: two nodes on this machine, signals, requeued jobs."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pgt.runs.folder import find, last_record
from tests.conftest import ROOT, SECONDS, TINY, last_wins, pgt, program
from tests.training.test_stopping import assert_same, result

RUN = last_wins(*TINY, "model=resnet20", "recipe.epochs=2", "data.num_samples=480", "recipe.local_batch=4",
       "record.norms_every=20")  # fmt: skip
"""Two epochs of sixty steps."""
BEGUN = 2
"""Step, from 0, by which a run is in the middle of its first epoch."""

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture(scope="module")
def slurm():
    """A cluster of two nodes; its jobs find this checkout's `pgt`."""
    program("munged")
    program("slurmctld")
    folder = tempfile.mkdtemp(prefix="pgt-slurm-")  # pytest's own are too long for a socket
    script = ROOT / "scripts" / "slurm_test_cluster.sh"
    command = Path(folder, "pgt")  # a path without spaces, which the checkout's may have
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pgt "$@"\n')
    command.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
        patch.setenv("PGT", str(command))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        try:
            subprocess.run([script, "start", folder], check=True, timeout=SECONDS)
            yield
        finally:
            subprocess.run([script, "stop", folder], check=True, timeout=SECONDS)
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def alone(slurm, tmp_path_factory):
    """The result of a run that nobody stops, in one process."""
    root = tmp_path_factory.mktemp("alone")
    done = pgt("train", *RUN, f"paths.runs={root}")
    assert done.returncode == 0, done.stderr
    return result(root)


@pytest.fixture(scope="module")
def together(slurm, tmp_path_factory):
    """The result of a run that nobody stops, of a rank on each node."""
    root = tmp_path_factory.mktemp("together")
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", os.environ["PGT"], "train"]
    done = subprocess.run([*command, *RUN, f"paths.runs={root}"], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert "2 epochs of 60 steps on 2 devices  ->" in done.stdout
    return result(root)


SIZES = {
    "one_node": ("--cpus-per-task=1", "--time=10"),
    "several_nodes": ("--cpus-per-task=1", "--time=10", "--ntasks-per-node=1"),
    "sweep": ("--cpus-per-task=1", "--time=10", "--array=0-1"),
}
"""What a researcher edits of a template."""


def submit(template, *overrides, partition="main"):
    """The number of the job."""
    options = ["--parsable", f"--partition={partition}", *SIZES[template]]
    command = ["sbatch", *options, ROOT / "launch" / f"{template}.sbatch", *overrides]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def state(job):
    """What Slurm knows of a job: JobState, ExitCode, Restarts, ..."""
    shown = subprocess.run(["scontrol", "show", "job", job], check=True, capture_output=True, text=True).stdout
    return dict(re.findall(r"(\w+)=(\S*)", shown))


def until(what, job):
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline, (state(job), [path.read_text() for path in Path().glob("slurm-*.log")])
        time.sleep(0.1)


def begun(job, seed=0):
    """Wait until a run is in the middle of an epoch."""

    def reached():
        return any(s.seed == seed and last_record(f).get("step", 0) >= BEGUN for f, s in find(Path("runs")))

    until(reached, job)


def ended(job):
    """A job's state in the end."""
    until(lambda: state(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), job)
    return state(job)


def went_on(log, signal):
    """Whether a log tells of a run that was stopped by a signal, and went on at the next step."""
    text = Path(log).read_text()
    step, epoch = map(int, re.search(rf"pgt: stopped by {signal} after step (\d+) of epoch (\d+);", text).groups())
    begin = f"from epoch {epoch}, step {step + 1}  ->" if step < 60 else f"from epoch {epoch + 1}  ->"
    return begin in text


def test_srun_tasks_on_two_nodes_train_one_run(together):
    assert together[1]["world_size"] == 2
    assert together[1]["status"] == "finished"


REQUEUED = "scontrol requeue {job}"
WARNED = "scancel --signal=USR1 {job}"
PREEMPTED = "sbatch --partition=urgent --nodes=2 --exclusive --wrap=true"


@pytest.mark.parametrize(
    ("template", "partition", "command", "signal"),
    [
        ("one_node", "main", REQUEUED, "SIGTERM"),  # by Slurm itself, as when it preempts without a GraceTime
        ("one_node", "grace", PREEMPTED, "SIGTERM"),  # the job is running still, and so it asks to be requeued
        ("several_nodes", "main", WARNED, "SIGUSR1"),  # as before the time limit
    ],
)
def test_a_job_that_is_stopped_is_requeued_and_goes_on(request, template, partition, command, signal):
    whole = request.getfixturevalue("alone" if template == "one_node" else "together")
    job = submit(template, *RUN, partition=partition)
    begun(job)
    subprocess.run(command.format(job=job).split(), check=True)
    done = ended(job)
    log = Path(f"slurm-{job}.log")
    assert (done["JobState"], done["ExitCode"], done["Restarts"]) == ("COMPLETED", "0:0", "1"), log.read_text()
    assert went_on(log, signal), log.read_text()
    assert_same(result("runs"), whole)


@pytest.mark.parametrize("template", ["one_node", "several_nodes"])
def test_bad_input_is_not_requeued(slurm, template):
    job = submit(template, *RUN, "method.alpha=2")
    done = ended(job)
    assert (done["JobState"], done["ExitCode"], done["Restarts"]) == ("FAILED", "2:0", "0")
    assert Path(f"slurm-{job}.log").read_text().count("pgt: method.alpha must lie in [0, 1], got 2.0\n") == 1


def test_a_cancelled_job_stays_cancelled(slurm):
    """Slurm would requeue it, if asked."""
    job = submit("one_node", *RUN)
    begun(job)
    subprocess.run(["scancel", job], check=True)
    done = ended(job)
    assert (done["JobState"], done["Restarts"]) == ("CANCELLED", "0")
    assert "pgt: stopped by SIGTERM" in Path(f"slurm-{job}.log").read_text()


def test_a_task_of_an_array_is_requeued_alone(slurm):
    array = submit("sweep", *RUN)
    begun(array, seed=1)
    last = f"{array}_1"
    subprocess.run(["scancel", "--signal=USR1", last], check=True)
    done = [ended(f"{array}_{task}") for task in range(2)]
    assert [(task["JobState"], task["Restarts"]) for task in done] == [("COMPLETED", "0"), ("COMPLETED", "1")]
    assert went_on(f"slurm-{last}.log", "SIGUSR1")
    assert sorted((summary.seed, summary.status) for _, summary in find(Path("runs"))) == [
        (0, "finished"),
        (1, "finished"),
    ]
