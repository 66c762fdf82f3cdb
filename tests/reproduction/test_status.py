"""The progress of runs, read from their folders, from lists of sweeps and from Slurm's queue."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pgt.cli.main import main
from pgt.config.identity import identity, run_id
from pgt.core.errors import HeldError
from pgt.reproduction import status
from pgt.runs import folder as runs
from pgt.runs.sweeps import link, new_sweep, write_list
from tests.conftest import ROOT, SECONDS, TINY, compose, last_wins, until
from tests.reproduction.helpers import plant, plant_summary

LOCKED = """
import sys, time
from pathlib import Path
from pgt.runs.folder import lock
with lock(Path(sys.argv[1])):
    time.sleep(600)
"""


def begun(seed, speed, *records, age=0.0):
    """An unfinished run of three epochs, with these records, `age` seconds old."""
    config = compose("experiment=demo/bn", f"seed={seed}")
    folder, _ = plant_summary(config, epochs=3, images_per_second=speed, test_top1_best=91.5)
    (folder / "lock").touch()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    os.utime(folder / "metrics.jsonl", (time.time() - age,) * 2)
    return folder


def holding(folder):
    """A process that holds a folder."""
    process = subprocess.Popen([sys.executable, "-c", LOCKED, str(folder)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    until(lambda: runs.holder(folder).endswith(f" {process.pid}"), process)
    return process


def listed(*seeds):
    """The folder of a sweep that lists runs of demo/bn, and their folders."""
    sweep, configs = new_sweep(Path("runs")), [compose("experiment=demo/bn", f"seed={seed}") for seed in seeds]
    folders = [Path("runs/demo/bn") / run_id(identity(config)) for config in configs]
    write_list(sweep, ["pgt train", "-m"], dict(zip(folders, map(identity, configs), strict=True)))
    return sweep, folders


def statuses(experiment=None):
    return {one.run: one.status for one in status.standings(Path("runs"), experiment)}


@pytest.fixture(autouse=True)
def slurm(monkeypatch):
    """Stand-ins for Slurm's programs: `squeue` prints the file `queue`, `scancel` notes its words in `cancelled`."""
    Path("queue").touch()
    for name, line in {"squeue": "cat queue", "scancel": 'echo "$@" >> cancelled'}.items():
        program = Path("bin", name)
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:/usr/bin:/bin")
    return Path("queue").write_text


def test_each_run_has_its_status_and_what_is_left_of_it(capsys):
    plant("demo/bn", "baseline", 0, 90.0, 89.0, curve=range(15))
    plant("demo/nobn", "gc", 0, None, None, status="diverged")
    stopped = begun(0, 1000.0, {"event": "step"}, age=7300)
    running = begun(1, None, {"event": "step", "images_per_second": 500.0})
    with runs.lock(running):
        found = {one.run: one for one in status.standings(Path("runs"))}
        assert main(["status"]) == 0
    assert sorted(one.status for one in found.values()) == ["diverged", "finished", "running", "stopped"]
    assert (found[stopped].status, found[running].status) == ("stopped", "running")
    epochs = 12 * (14 * 64 + 899 / 3)  # left of 15, each of 14 whole batches and an evaluation of 899 images
    assert found[stopped].left == pytest.approx(epochs / 1000)
    assert found[running].left == pytest.approx(epochs / 500)
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if stopped.name in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == ["pgt α=0.25", "0", "stopped", "3/15", "91.50", "1,000", "14 s", "2 h 2 min ago", ""]
    assert "4 runs: 1 diverged, 1 finished, 1 running, 1 stopped" in printed
    line = next(line for line in printed.splitlines() if running.name in line)
    assert f"{os.uname().nodename}, process {os.getpid()}" in line
    assert "to resume a stopped run, repeat its command (environment.json" in printed


def test_a_run_at_alpha_0_is_no_run_without_one(capsys):
    plant("demo/bn", "pgt", 0, 90.0, 89.0, curve=range(15), overrides=["method.alpha=0"])
    assert main(["status"]) == 0
    assert "| pgt α=0 " in capsys.readouterr().out


def test_a_file_system_without_locks_has_no_holder(monkeypatch):
    folder = begun(0, 1000.0, {"event": "step"})

    def refuse(*arguments):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert runs.holder(folder) == ""
    assert statuses() == {folder: "stopped"}


def test_the_name_of_a_process_that_has_the_lock_is_waited_for(monkeypatch):
    folder = begun(0, 1000.0)
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", lambda seconds: (folder / "lock").write_text("node7, process 123"))
            assert runs.holder(folder) == "node7, process 123"
        file.truncate(0)
        assert runs.holder(folder) == "a process"
        monkeypatch.setattr(runs, "LOCK_SECONDS", 0)
        with pytest.raises(HeldError, match=r"is being trained by another process \(a process\)"), runs.lock(folder):
            pass


def test_a_run_that_ends_while_the_state_of_all_is_asked_for_is_shown_as_ended(monkeypatch):
    """It writes its summary and gives up its lock after its summary was read, and before its lock is asked for."""
    folder = begun(0, 1000.0, {"event": "step"})

    def ends(one):
        runs.write_summary(one, replace(runs.read_summary(one), status="finished"))
        return ""

    monkeypatch.setattr(status, "holder", ends)
    assert statuses() == {folder: "finished"}


def test_a_run_whose_process_was_killed_is_told_from_one_that_stopped():
    folder = begun(0, 1000.0, {"event": "step"})
    process = holding(folder)
    assert statuses() == {folder: "running"}
    process.kill()
    process.wait()
    assert statuses() == {folder: "killed"}
    with runs.lock(folder):
        pass
    assert statuses() == {folder: "stopped"}


def test_failed_refused_and_damaged_runs_are_counted_with_their_reasons(capsys):
    failed, refused, damaged = begun(0, 1000.0), begun(1, 1000.0), begun(2, 1000.0)
    runs.write_failure(failed, runs.Failure(1, "a rank\nit died", []))
    runs.write_failure(refused, runs.Failure(2, f"{refused}: no data", []))
    (damaged / "summary.json").write_text("{")
    assert statuses() == {failed: "failed", refused: "refused", damaged: "damaged"}
    assert main(["status", "demo/bn"]) == 0
    printed = capsys.readouterr()
    assert "3 runs: 1 damaged, 1 failed, 1 refused" in printed.out
    assert f"- {failed}: failed: it died\n" in printed.out
    assert f"- {refused}: refused: no data\n" in printed.out
    assert "delete this file" in printed.out
    assert printed.err == ""


def test_runs_of_a_sweep_wait_while_it_goes_on_and_fail_again(capsys):
    sweep, (waiting, failed_before, failed, finished) = listed(0, 1, 2, 3)
    runs.write_failure(failed_before, runs.Failure(1, "earlier", []))
    os.utime(failed_before / "failure.json", (time.time() - 100,) * 2)
    runs.write_failure(failed, runs.Failure(1, "now", []))
    plant("demo/bn", "pgt", 3, 90.0, 89.0)
    expected = {waiting: "queued", failed_before: "queued", failed: "failed", finished: "finished"}
    with runs.lock(sweep):
        assert statuses("demo") == statuses() == expected
        assert statuses("demo/nobn") == {}
    assert statuses() == expected | {waiting: "not begun", failed_before: "failed"}
    assert main(["status", "--json"]) == 0
    found = {Path(one["run"]): one for one in json.loads(capsys.readouterr().out)}
    assert (found[waiting]["method"], found[waiting]["alpha"], found[waiting]["seed"]) == ("pgt", 0.25, 0)
    assert found[finished]["best"] == 89.0


def test_slurms_queue_says_what_waits_and_what_runs_and_a_job_can_be_cancelled(slurm, capsys):
    array = new_sweep(Path("runs")) / "array0"
    requeued = begun(0, 1000.0, {"event": "step"})
    coming, elsewhere = Path("runs/demo/bn/b"), Path("runs/other/c")
    for index, folder in enumerate([requeued, coming, elsewhere]):
        link(array, index, folder)
    slurm("".join(f"7_{i}|{s}|{array}\n" for i, s in enumerate(["PENDING", "RUNNING", "PENDING"])))
    assert statuses() == {requeued: "queued", coming: "running", elsewhere: "queued"}
    assert main(["status", "--cancel", "demo"]) == 0
    assert Path("cancelled").read_text() == "7_0 7_1\n"
    said = capsys.readouterr().out.splitlines()
    assert sorted(said) == sorted([f"cancelled job 7_0: {requeued}", f"cancelled job 7_1: {coming}"])


def test_cancelling_asks_the_processes_of_this_machine_to_stop(capsys):
    sweep, (coming, running) = listed(0, 1)
    alone = begun(2, 1000.0)
    begun(1, 1000.0)
    starts, trains, other = holding(sweep), holding(running), holding(alone)
    try:
        assert main(["status", "--cancel", "demo/bn"]) == 0
        assert [process.wait(SECONDS) for process in (starts, trains, other)] == [-signal.SIGTERM] * 3
    finally:
        for process in (starts, trains, other):
            process.kill()
            process.wait()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"asked to stop ({os.uname().nodename}, process {starts.pid}): ")
    assert {str(coming), str(running)} == set(said[0].partition("): ")[2].split(", "))
    assert len(said) == 3
    assert main(["status", "--cancel", "demo/bn"]) == 0
    assert "nothing of demo/bn is queued or running" in capsys.readouterr().out


def test_a_process_of_another_machine_is_named_and_not_stopped(capsys, monkeypatch):
    folder = begun(0, 1000.0)
    with runs.lock(folder):
        monkeypatch.setattr("platform.node", lambda: "elsewhere")
        assert main(["status", "--cancel", "demo/bn"]) == 0
    assert "not stopped, since it is on another machine" in capsys.readouterr().out


def test_a_number_that_another_process_has_here_is_not_ended(capsys):
    folder = begun(0, 1000.0)
    process = holding(folder)
    other = subprocess.Popen(["sleep", "600"])
    try:
        (folder / "lock").write_text(f"{os.uname().nodename}, process {other.pid}")
        assert main(["status", "--cancel", "demo/bn"]) == 0
        assert "another container" in capsys.readouterr().out
        assert other.poll() is None
    finally:
        for one in (process, other):
            one.kill()
            one.wait()


def test_retrying_gives_the_command_of_failed_runs_again_and_leaves_others(capsys):
    words = last_wins(*TINY, "model=resnet20")
    assert main(["train", "-m", *words, "seed=0,1"]) == 0
    first, second = sorted(folder for folder, _ in runs.find(Path("runs")))
    for name in ("summary.json", "checkpoints/last.pt"):
        (first / name).unlink()
    command = json.loads((second / "environment.json").read_text())["starts"][0]["command"]
    runs.write_failure(first, runs.Failure(1, "a fault", [*command, "trainer.force=true"]))
    assert statuses() == {first: "failed", second: "finished"}
    before = (second / "summary.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["status", "--retry-failed", "custom"]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("pgt train -m ")
    assert said.endswith("# 1 failed")
    assert "force" not in said
    assert statuses() == {first: "finished", second: "finished"}
    assert (second / "summary.json").stat().st_mtime_ns == before
    assert main(["status", "--retry-failed", "custom"]) == 0
    assert "has failed" in capsys.readouterr().out


def test_a_slurm_that_does_not_answer_costs_a_warning(capsys):
    folder = begun(0, 1000.0)
    Path("bin/squeue").write_text("#!/bin/sh\nexit 1\n")
    assert statuses() == {folder: "stopped"}
    assert capsys.readouterr().err == ""  # nothing was submitted from here
    Path("runs/.sweeps/now/array0").mkdir(parents=True)
    assert statuses() == {folder: "stopped"}
    assert "squeue does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--cancel", "--retry-failed"])
def test_nothing_is_cancelled_or_retried_while_slurm_does_not_answer(capsys, word):
    begun(0, 1000.0)
    Path("bin/squeue").write_text("#!/bin/sh\nexit 1\n")
    assert main(["status", word, "demo/bn"]) == 0  # nothing was submitted from here
    Path("runs/.sweeps/now/array0").mkdir(parents=True)
    capsys.readouterr()
    assert main(["status", word, "demo/bn"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "squeue does not answer" in err


def test_steering_needs_an_experiment(capsys):
    assert main(["status", "--cancel"]) == 2
    assert "say which experiment" in capsys.readouterr().err


def test_watching_ends_when_nothing_is_queued_or_running(monkeypatch, capsys):
    folder = begun(0, 1000.0, {"event": "step"})
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.1)
    process = holding(folder)
    standings = status.standings

    def looked(*arguments):
        found = standings(*arguments)
        process.kill()
        process.wait()
        return found

    monkeypatch.setattr(status, "standings", looked)
    assert main(["status", "--watch"]) == 0
    printed = capsys.readouterr().out
    assert "1 run: 1 running" in printed
    assert "1 run: 1 killed" in printed


def test_one_experiment_and_none(capsys):
    plant("demo/bn", "baseline", 0, 90.0, 89.0, curve=(1,))
    plant("demo/nobn", "baseline", 0, 90.0, 89.0, curve=(1,))
    assert [run.parent.name for run in statuses("demo/bn")] == ["bn"]
    assert main(["status", "table1"]) == 2
    assert "no runs under runs/table1: run `pgt train -m experiment=table1/all` first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (59.7, "1 min"),
        (90, "2 min"),
        (3599, "1 h 0 min"),
        (85_200, "23 h 40 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds, text):
    assert status.duration(seconds) == text
