"""What commands read of many runs is counted, since times depend on the machine."""

import json
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pgt.cli.main import main
from pgt.config.identity import identity, run_id
from pgt.launch import slurm
from pgt.launch.one_job import LaunchedJob
from pgt.runs.folder import UNFINISHED
from pgt.runs.sweeps import link, new_sweep
from tests.conftest import compose
from tests.reproduction.helpers import plant_summary

RUNS = 2000
QUEUED = RUNS // 5

counted = Counter()
"""Files below `runs` that Python has opened, and programs that it has started, by name."""
now = SimpleNamespace(counting=False)


def _count(event, arguments, now=now, counted=counted):  # at the end of Python the module has no globals any more
    if now.counting and event == "open" and isinstance(arguments[0], str) and "runs/" in arguments[0]:
        counted[Path(arguments[0]).name] += 1
    elif now.counting and event == "subprocess.Popen":
        counted[Path(str(arguments[1][0])).name] += 1


@pytest.fixture(scope="module", autouse=True)
def _audited():
    sys.addaudithook(_count)  # stays; it does nothing unless `now.counting`
    yield
    now.counting = False


@pytest.fixture
def many(monkeypatch):
    """Folders of 2000 runs, the configs of all of them, and a queue of 400: half of these have no folder yet."""
    base = compose("experiment=demo/bn")
    first, summary = plant_summary(base, status="finished", epochs=15, test_top1_best=90.0, images_per_second=100.0)
    (first / "summary.json").unlink()
    first.rmdir()
    array, configs, queue = new_sweep(Path("runs")) / "array0", [], []
    for seed in range(RUNS):
        config = base.model_copy(
            update={"seed": seed % 20, "method": base.method.model_copy(update={"alpha": 1 / (2 + seed // 20)})}
        )
        configs.append(config)
        values = identity(config)
        folder = Path("runs/demo/bn", run_id(values))
        if seed < QUEUED:
            link(array, seed, folder)
            queue.append(f"7_{seed}|{'RUNNING' if seed % 2 else 'PENDING'}|{array.absolute()}")
        if seed >= QUEUED or seed % 2:
            own = replace(
                summary, run_id=folder.name, identity=values, seed=seed % 20, group_id=run_id({**values, "seed": 0})
            )
            own.status = UNFINISHED if seed < QUEUED else own.status
            folder.mkdir()
            (folder / "summary.json").write_text(json.dumps(asdict(own)))
            (folder / "metrics.jsonl").write_text('{"event": "step", "images_per_second": 50.0}\n')
    Path("queue").write_text("\n".join(queue))
    Path("bin").mkdir()
    for name, line in {"squeue": "cat queue", "scontrol": "echo MaxArraySize = 1001"}.items():
        Path("bin", name).write_text(f"#!/bin/sh\n{line}\n")
        Path("bin", name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:/usr/bin:/bin")
    counted.clear()
    now.counting = True
    return configs


@pytest.mark.slow
def test_commands_read_each_summary_once_and_little_else(many, capsys):
    assert main(["status"]) == 0
    now.counting = False
    assert (
        f"{RUNS} runs: {RUNS - QUEUED} finished, {QUEUED // 2} queued, {QUEUED // 2} running" in capsys.readouterr().out
    )
    whole = RUNS - QUEUED // 2
    assert counted["summary.json"] == whole
    assert counted["squeue"] == 1
    assert counted.total() <= whole + 4 * QUEUED + 10

    counted.clear()
    now.counting = True
    assert main(["table", "demo/bn"]) == 0
    assert counted["summary.json"] == counted.total() == whole


@pytest.mark.slow
def test_what_is_left_to_submit_is_decided_by_one_look_at_the_queue_and_one_at_each_summary(many, capsys):
    folders = [Path("runs/demo/bn", run_id(identity(config))) for config in many]
    jobs = [
        LaunchedJob(n, "", config, folder, []) for n, (config, folder) in enumerate(zip(many, folders, strict=True))
    ]
    options = {"tasks_per_node": None, "parallel": None, "warning": 120, "setup": [], "python": None}
    slurm.launch(jobs, Path("runs/.sweeps/now"), wait=False, then=None, **options)
    now.counting = False
    assert f"{RUNS} runs: {RUNS - QUEUED} ended, {QUEUED} in the queue already, 0 submitted" in capsys.readouterr().out
    assert counted["squeue"] == 1
    assert counted["summary.json"] == RUNS
    assert counted.total() == RUNS + 2  # the queue, and the size of an array
