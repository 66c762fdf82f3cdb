"""The folder of a sweep, and what Slurm's queue says of its runs."""

import os
from pathlib import Path

import pytest

from pgt.core.errors import InputError
from pgt.runs import sweeps
from pgt.runs.sweeps import LIST, SlurmJob, link, new_sweep, queued, read_sweeps, runs_of, write_list


@pytest.fixture
def squeue(monkeypatch):
    """A stand-in for Slurm's program that prints what a file holds."""
    program = Path("bin/squeue")
    program.parent.mkdir()
    monkeypatch.setenv("PATH", "bin:/usr/bin:/bin")

    def says(text, code=0):
        Path("queue").write_text(text)
        program.write_text(f"#!/bin/sh\ncat queue\necho 'slurm_load_jobs error' >&2\nexit {code}\n")
        program.chmod(0o755)

    return says


def test_sweeps_that_begin_at_once_have_folders_of_their_own_and_know_their_runs():
    sweeps = [new_sweep(Path("runs")) for _ in range(3)]
    assert len(set(sweeps)) == 3
    for run in ("b", "a", "a"):
        link(sweeps[0], 11, Path("runs/demo", run))
    (sweeps[0] / "log").touch()
    assert runs_of(sweeps[0]) == {11: Path("runs/demo/a").absolute()}


def test_the_queue_names_runs_by_array_and_leaves_out_what_is_ending_or_foreign(squeue):
    array = Path("a_sweep_folder_of_ones_own/array12").absolute()
    for index, name in enumerate("abcd"):
        link(array, index, Path("runs/demo", name))
    rows = ["7_0|RUNNING|{}", "7_1|PENDING|{}", "7_2|COMPLETING|{}", "8|RUNNING|{}", "9_0|RUNNING|(null)"]
    squeue("\n".join(row.format(array) for row in rows[:3]) + f"\n{rows[4]}\n")
    runs = Path("runs/demo").resolve()
    assert queued() == {runs / "a": SlurmJob("7_0", True), runs / "b": SlurmJob("7_1", False)}
    assert queued(ending=True) == queued() | {runs / "c": SlurmJob("7_2", False, ending=True)}
    squeue(rows[3].format(array))  # an array of one job is a job
    assert queued() == {runs / "a": SlurmJob("8", True)}


def test_the_list_of_a_sweep_grows_with_its_steps_and_keeps_its_time():
    sweep, about = new_sweep(Path("runs")), {"seed": 0, "method": {"alpha": 1.0, "transforms": []}}
    write_list(sweep, ["pgt train"], {Path("runs/demo/a"): about})
    os.utime(sweep / LIST, (1000, 1000))
    write_list(sweep, ["pgt train"], {Path("runs/demo/b"): about})
    [found] = read_sweeps(Path("runs"))
    assert ([*found.runs], found.started) == ([Path("demo/a"), Path("demo/b")], 1000)


def test_without_slurm_nothing_is_queued_and_a_slurm_that_fails_is_said(squeue, monkeypatch):
    squeue("", code=1)
    with pytest.raises(InputError, match="slurm_load_jobs error"):
        queued()
    monkeypatch.setenv("PATH", "nowhere")
    assert queued() == {}


def test_slurm_is_asked_and_a_folder_read_once_however_many_jobs_there_are(squeue, monkeypatch):
    """Else a queue of thousands of jobs would take minutes."""
    arrays, calls = [new_sweep(Path("runs")) / "array0" for _ in range(2)], []
    for array in arrays:
        for index in range(3):
            link(array, index, Path(f"runs/demo/{array.parent.name}{index}"))
    squeue("".join(f"7_{index}|PENDING|{array}\n" for array in arrays for index in range(3)))
    for name in ("runs_of", "ask_slurm"):
        function = getattr(sweeps, name)
        monkeypatch.setattr(sweeps, name, lambda *args, f=function: (calls.append(f.__name__), f(*args))[1])
    assert len(queued()) == 6
    assert calls == ["ask_slurm", "runs_of", "runs_of"]
