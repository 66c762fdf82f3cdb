"""The progress of runs, read from their folders."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from pgt.cli.main import main
from pgt.reproduction import status
from pgt.runs import folder as runs
from tests.conftest import compose
from tests.reproduction.helpers import plant, plant_summary


def begun(seed, speed, *records, age=0.0):
    """An unfinished run of three epochs, with these records, `age` seconds old."""
    config = compose("experiment=demo/bn", f"seed={seed}")
    folder, _ = plant_summary(config, epochs=3, images_per_second=speed, test_top1_best=91.5)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    os.utime(folder / "metrics.jsonl", (time.time() - age,) * 2)
    return folder


def test_each_run_has_its_status_and_what_is_left_of_it(capsys):
    plant("demo/bn", "baseline", 0, 90.0, 89.0, curve=range(15))
    plant("demo/nobn", "gc", 0, None, None, status="diverged")
    stopped = begun(0, 1000.0, {"event": "step"}, age=7300)
    training = begun(1, None, {"event": "step", "images_per_second": 500.0})
    with runs.lock(training):
        found = {one.run: one for one in status.standings(Path("runs")).itertuples()}
        assert main(["status"]) == 0
    assert sorted(one.status for one in found.values()) == ["diverged", "finished", "stopped", "training"]
    assert (found[stopped].status, found[training].status) == ("stopped", "training")
    epochs = 12 * (14 * 64 + 899 / 3)  # left of 15, each of 14 whole batches and an evaluation of 899 images
    assert found[stopped].left == pytest.approx(epochs / 1000)
    assert found[training].left == pytest.approx(epochs / 500)
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if stopped.name in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == ["pgt α=0.25", "0", "stopped", "3/15", "91.50", "1,000", "14 s", "2 h 2 min ago"]
    assert "4 runs: 1 diverged, 1 finished, 1 stopped, 1 training" in printed
    assert f"- {training}: trained by {os.uname().nodename}, process {os.getpid()}" in printed
    assert "to resume a stopped run, repeat its command (environment.json" in printed


def test_a_file_system_without_locks_has_no_holder(monkeypatch):
    folder = begun(0, 1000.0, {"event": "step"})
    (folder / "lock").touch()

    def refuse(*arguments):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert runs.holder(folder) == ""
    assert [one.status for one in status.standings(Path("runs")).itertuples()] == ["stopped"]


def test_one_experiment_and_none(capsys):
    plant("demo/bn", "baseline", 0, 90.0, 89.0, curve=(1,))
    plant("demo/nobn", "baseline", 0, 90.0, 89.0, curve=(1,))
    assert [run.parent.name for run in status.standings(Path("runs"), "demo/bn").run] == ["bn"]
    assert main(["status", "table1"]) == 2
    assert capsys.readouterr().err == (
        "pgt: no run of table1 under runs: `pgt train` makes them, --runs names another folder\n"
    )


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
