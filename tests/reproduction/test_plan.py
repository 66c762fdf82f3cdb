"""What a plan counts, and where its speeds come from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pgt.cli.main import main
from pgt.config.compose import compose_all
from pgt.config.identity import identity
from pgt.core.errors import InputError
from pgt.reproduction import cost
from pgt.reproduction.plan import Machine, plan
from tests.conftest import ROOT, TINY, train
from tests.reproduction.test_reproduction import plant


@pytest.fixture(autouse=True)
def _imagenet(monkeypatch):
    monkeypatch.setenv("IMAGENET", "nowhere")


def items(*overrides, root="runs"):
    configs = compose_all(overrides, multirun=True)
    return plan([(config.experiment, identity(config), 4) for config in configs], Path(root))


def test_the_three_tables_are_29_runs(capsys):
    assert main(["plan", "experiment=table1/all,table2/all,table3/all"]) == 0
    printed = capsys.readouterr().out
    assert "29 distinct runs" in printed
    assert len([line for line in printed.splitlines() if line.startswith("| table")]) == 29


def test_runs_that_are_shared_count_once():
    assert len(items("experiment=table3/all", "seed=0,1")) == 16
    assert len(items("experiment=table1/resnet50_cosine_pgt,table3/all")) == 8
    jobs = [("a", identity(compose_all(["experiment=demo/bn"])[0]), 1)] * 2
    assert [item.experiment for item in plan(jobs, Path("runs"))] == ["a"]


def test_done_partial_and_missing_by_the_runs_folder():
    plant("demo/bn", "baseline", 0, 90.0, 89.0, curve=range(15))
    plant("demo/bn", "pgt", 0, None, None, status="unfinished", curve=(10, 20, 30))
    plant("demo/bn", "gc", 0, None, None, status="diverged")
    found = {item.identity["method"]["alpha"]: item for item in items("experiment=demo/bn", "method=baseline,pgt")}
    assert (found[1].status, found[1].work.images) == ("done", 0)
    assert found[0.25].status == "partial"
    assert found[0.25].work.steps == 12 * (898 // 64)  # 12 of 15 epochs left, the last, partial batch left out
    assert [item.status for item in items("experiment=demo/bn", "method=gc,agc")] == ["done", "missing"]


def test_a_plan_of_a_machine_without_dali_finds_the_runs_of_one_with_it():
    values = identity(compose_all(["experiment=table1/resnet18_cosine_pgt", "data.backend=dali"])[0])
    summary = plant("table1/resnet18_cosine_pgt", "pgt", 0, 70.0, 70.0)
    path = Path("runs/table1/resnet18_cosine_pgt") / summary.run_id / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": values}))
    [item] = items("experiment=table1/resnet18_cosine_pgt", "data.backend=torchvision")
    assert item.status == "done"


def test_hours_worked_by_hand():
    [item] = items("experiment=table1/resnet50_cosine_pgt")
    assert item.work.steps == 100 * 1251  # of 1024 images, the last, partial one left out
    assert item.work.images == 100 * 1251 * 1024
    assert item.work.evaluated == 100 * 50_000
    machine = Machine(lambda model: cost.Speed(1000, "stated"))
    assert machine.seconds(item) == pytest.approx((128_102_400 + 5_000_000 / 3) / 4000)
    assert machine.bound(item) == "step"
    slow = Machine(lambda model: cost.Speed(1000, "stated"), cost.Speed(2000, "stated"))
    assert slow.seconds(item) == pytest.approx((128_102_400 + 5_000_000) / 2000)
    assert slow.bound(item) == "loader"
    assert Machine(lambda model: None).seconds(item) is None


def test_a_run_takes_no_more_gpus_than_can_share_it(capsys):
    assert main(["plan", "experiment=table1/resnet50_cosine_pgt,table2/batch256_pgt", "--gpus=8"]) == 0
    printed = capsys.readouterr().out
    assert "each on 4 or 8 GPUs" in printed  # four groups of 256; without batch norm any part of the batch
    assert main(["plan", "experiment=table1/resnet50_cosine_pgt", "--gpus=3", "--images-per-second=1000"]) == 0
    assert "each on 2 GPUs" in capsys.readouterr().out
    assert main(["plan", "-m", "experiment=demo/bn", "--images-per-second=1000"]) == 0


def test_published_speeds_and_their_estimates():
    assert cost.published_speed("resnet50", "V100-16GB").images_per_second == 1040  # of the run on eight
    assert cost.published_speed("resnet18_nobn", "RTX3090").images_per_second == 3482
    estimate = cost.published_speed("resnet101", "A100-80GB")
    assert estimate.images_per_second == pytest.approx(2078 * 748 / 1218)
    assert estimate.source.startswith("estimated for A100-80GB: resnet50's (NVIDIA")
    assert cost.published_speed("resnet20", "RTX3090") is None
    with pytest.raises(InputError, match="no speed of a H1000 is published: choose one of A100-80GB"):
        cost.published_speed("resnet50", "H1000")


def test_speeds_from_bench_tables(capsys):
    table = """resnet18, 256 x {size} x {size}, fp16; 8 rounds

| loop              | ms a step   | images/s   |
|-------------------|-------------|------------|
| bare loop         | 100.00      | 9,999      |
| pgt, PGT α = 0.25 | 341.63      | {speed}    |
"""
    Path("gpu.md").write_text(table.format(size=224, speed="1,234") + "\n" + table.format(size=64, speed="8,000"))
    source = "gpu.md: resnet18, 256 x 224 x 224, fp16"
    assert cost.bench_speeds(Path("gpu.md")) == {"resnet18": cost.Speed(1234, source)}
    loader = cost.bench_speeds(ROOT / "results/bench/loader-cpu.md")
    assert loader["loader"].images_per_second == 831
    files = ["--bench=gpu.md", f"--bench={ROOT}/results/bench/loader-cpu.md"]
    assert main(["plan", "experiment=table1/resnet18_cosine_pgt", *files]) == 0
    printed = capsys.readouterr().out
    assert "gpu.md: resnet18" in printed
    assert "loader-cpu.md" in printed
    for bad in ("nothing", table.format(size=64, speed="8,000")):
        Path("bad.md").write_text(bad)
        assert main(["plan", "experiment=demo/bn", "--bench", "bad.md"]) == 2
        assert "has no table of" in capsys.readouterr().err


def test_of_two_runs_that_differ_in_their_decoder_alone_the_farther_one_counts():
    for backend, status in (("torchvision", "finished"), ("dali", "unfinished")):
        values = identity(compose_all(["experiment=table1/resnet18_cosine_pgt", f"data.backend={backend}"])[0])
        summary = plant("table1/resnet18_cosine_pgt", "pgt", len(backend), 70.0, 70.0, status=status, curve=(1, 2))
        path = Path("runs/table1/resnet18_cosine_pgt") / summary.run_id / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": values}))
    [item] = items("experiment=table1/resnet18_cosine_pgt")
    assert item.status == "done"


def test_a_probe_measures_here(capsys):
    assert main(["plan", "experiment=demo/bn", "--probe", "--gpus=1"]) == 0
    assert "50 steps measured on" in capsys.readouterr().out


def test_a_plan_of_what_was_trained_says_done():
    train(*TINY, "model=resnet20")
    [item] = items(*TINY, "model=resnet20")
    assert item.status == "done"


def test_a_plan_needs_neither_data_nor_torch():
    code = "import sys; from pgt.cli.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    arguments = ["plan", "experiment=table2/batch256_pgt,grid/alpha_resnet20_cifar10", "method.alpha=0.3"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={})
    assert done.stdout.endswith("0 False\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=table1/al"], "unknown experiment 'table1/al'"),
        (["experiment=demo/bn", "--gpus", "0"], "must be at least 1"),
        (["experiment=demo/bn", "--images-per-second", "-3"], "must be above 0"),
        (["experiment=demo/bn", "--bench", "nowhere.md"], "nowhere.md: No such file"),
    ],
)
def test_bad_input_exits_2(arguments, message, capsys):
    try:
        code = main(["plan", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["1", "2", "3", "demo"])
def test_the_committed_tables_are_current(name, capsys):
    """`make tables` has been run since results/runs or the code changed."""
    assert main(["table", name, "--runs", str(ROOT / "results/runs"), "--format", "markdown"]) == 0
    file = ROOT / "results/tables" / (f"table{name}.md" if name.isdigit() else f"{name}.md")
    assert file.read_text() == capsys.readouterr().out
