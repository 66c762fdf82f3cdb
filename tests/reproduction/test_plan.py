"""A plan counts distinct runs, and says where its speeds come from."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pgt.cli.main import main
from pgt.config.compose import compose_all
from pgt.config.identity import identity
from pgt.core.errors import InputError
from pgt.reproduction import cost
from pgt.reproduction.plan import plan, plan_table, seconds
from tests.conftest import ROOT, TINY, train
from tests.reproduction.helpers import plant


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
    plant("table1/resnet18_cosine_pgt", "pgt", 0, 70.0, 70.0, overrides=["data.backend=dali"])
    [item] = items("experiment=table1/resnet18_cosine_pgt", "data.backend=torchvision")
    assert item.status == "done"


def test_hours_worked_by_hand():
    [item] = items("experiment=table1/resnet50_cosine_pgt")
    assert item.work.steps == 100 * 1251  # of 1024 images, the last, partial one left out
    assert item.work.images == 100 * 1251 * 1024
    assert item.work.evaluated == 100 * 50_000
    speed, slow = cost.Speed(1000, "stated"), cost.Speed(2000, "stated")
    step, loader = pytest.approx((128_102_400 + 5_000_000 / 3) / 4000), pytest.approx((128_102_400 + 5_000_000) / 2000)
    assert seconds(item, speed, None) == {"step": step, "loader": 0}
    assert seconds(item, speed, slow) == {"step": step, "loader": loader}
    assert np.isnan(seconds(item, None, slow)["step"])
    assert plan_table([item], {"resnet50": speed}, None).rows[0][-1] == "step"
    assert plan_table([item], {"resnet50": speed}, slow).rows[0][-1] == "loader"


def test_a_run_takes_no_more_gpus_than_can_share_it(capsys):
    assert main(["plan", "experiment=table1/resnet50_cosine_pgt,table2/batch256_pgt", "--gpus=8"]) == 0
    printed = capsys.readouterr().out
    assert "each on 4 GPUs" in printed  # four groups of 256; without batch norm at least 64 images each
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


def benched(path, *lines):
    """Write a file as the benchmarks do with --json; a line is (benchmark, network, size, loop, images per second)."""
    found = [
        {
            "benchmark": benchmark,
            "case": {"network": network, "batch": 256, "size": size, "precision": "fp16", "compiled": False},
            "loop": loop,
            "images_per_second": speed,
            "machine": "a GPU",
        }
        for benchmark, network, size, loop, speed in lines
    ]
    Path(path).write_text(json.dumps(found))


def test_speeds_from_the_benchmarks(capsys):
    benched(
        "gpu.json",
        ("step", "resnet18", 224, "bare loop", 9999),
        ("step", "resnet18", 224, "pgt, PGT α = 0.25", 1234.0),
        ("step", "resnet18", 224, "pgt, PGT α = 0.25", 1200.0),
        ("step", "resnet18", 64, "pgt, PGT α = 0.25", 8000.0),
    )
    benched(
        "loader.json",
        ("loader", None, 224, "torchvision", 900),
        ("loader", None, 224, "pgt, torchvision decode_jpeg", 700),
        ("loader", None, 224, "pgt, DALI on the CPU", 831),
    )
    speed = cost.bench_speeds(Path("gpu.json"))
    assert {name: found.images_per_second for name, found in speed.items()} == {"resnet18": 1234}
    for said in ("gpu.json", "resnet18, 256 x 224 x 224, fp16", "a GPU"):
        assert said in speed["resnet18"].source
    assert cost.bench_speeds(Path("loader.json"))["loader"].images_per_second == 831
    files = ["--bench=gpu.json", "--bench=loader.json"]
    assert main(["plan", "experiment=table1/resnet18_cosine_pgt", *files]) == 0
    printed = capsys.readouterr().out
    assert "1,234 images/s a device, gpu.json" in printed
    assert "loader: 831 images/s, loader.json" in printed


@pytest.mark.parametrize("text", ["nothing", "[]", "[1]", "{}", '[{"benchmark": "step"}]', None])
def test_a_file_without_speeds_exits_2(text, capsys):
    benched("bad.json", ("step", "resnet18", 64, "pgt, PGT α = 0.25", 8000.0))
    if text is not None:
        Path("bad.json").write_text(text)
    assert main(["plan", "experiment=demo/bn", "--bench", "bad.json"]) == 2
    assert "bad.json has no" in capsys.readouterr().err


def test_of_two_runs_that_differ_only_in_the_decoder_the_farther_one_counts():
    for backend, status in (("torchvision", "finished"), ("dali", "unfinished")):
        plant(
            "table1/resnet18_cosine_pgt", "pgt", 0, 70.0, 70.0, status=status, curve=(1, 2),
            overrides=[f"data.backend={backend}"],
        )  # fmt: skip
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
    """Fails if results/runs or the code has changed and `make tables` was not run."""
    assert main(["table", name, "--runs", str(ROOT / "results/runs"), "--format", "markdown"]) == 0
    file = ROOT / "results/tables" / (f"table{name}.md" if name.isdigit() else f"{name}.md")
    assert file.read_text() == capsys.readouterr().out


def test_memory_of_a_gpu_worked_by_hand(capsys):
    assert main(["plan", "experiment=table1/resnet50_cosine_pgt", "trainer.precision=fp32"]) == 0
    gib = (256 * 2 * 43.9e6 + 12 * 25_557_032) / 2**30
    assert f"resnet50, 256 images of 224 pixels in fp32: about {gib:.1f} GiB" in capsys.readouterr().out
    assert main(["plan", "experiment=demo/bn"]) == 0
    assert "GiB" not in capsys.readouterr().out  # 64 images of 8 pixels need less than one


def test_speeds_published_for_224_pixels_say_nothing_of_smaller_images(capsys):
    assert main(["plan", "experiment=amplification/resnet18_cifar10"]) == 0
    assert "resnet18: speed not known" in capsys.readouterr().out
