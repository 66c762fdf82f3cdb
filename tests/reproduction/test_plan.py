"""A plan counts distinct runs, and says where its speeds come from."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pgt.cli.main import main
from pgt.config.compose import compose_all
from pgt.config.identity import identity
from pgt.core.errors import InputError
from pgt.reproduction import cost
from pgt.reproduction.plan import plan, plan_table, seconds
from pgt.runs.folder import find
from pgt.runs.frame import dotted, frame
from pgt.runs.labels import experiment_name
from pgt.training import folder as run_folder
from tests.conftest import ROOT, TINY, compose, imports, last_wins, train
from tests.reproduction.helpers import plant, plant_summary


@pytest.fixture(autouse=True)
def _imagenet(monkeypatch):
    monkeypatch.setenv("IMAGENET", "nowhere")


def items(*overrides, root="runs"):
    configs = compose_all(overrides, multirun=True)
    return plan([(experiment_name(config.experiment), identity(config), 4) for config in configs], frame(root))


def test_the_three_tables_are_29_runs(capsys):
    assert main(["plan", "experiment=table1/all,table2/all,table3/all"]) == 0
    printed = capsys.readouterr().out
    assert "29 distinct runs" in printed
    assert len([line for line in printed.splitlines() if line.startswith("| table")]) == 29


def test_runs_that_are_shared_count_once():
    assert len(items("experiment=table3/all", "seed=0,1")) == 16
    assert len(items("experiment=table1/resnet50_cosine_pgt,table3/all")) == 8
    jobs = [("a", identity(compose_all(["experiment=demo/bn"])[0]), 1)] * 2
    assert [item.experiment for item in plan(jobs, frame("runs"))] == ["a"]


def test_a_run_of_another_experiment_is_not_done_even_if_its_values_are_the_same():
    """`pgt train` would train it: a run's folder lies in that of its experiment."""
    plant("demo/bn", "pgt", 0, 90.0, 89.0, curve=range(15))
    job = identity(compose_all(["experiment=demo/bn"])[0]), 1
    assert [item.status for item in plan([("demo/bn", *job), ("mine", *job)], frame("runs"))] == ["done", "missing"]


def test_done_partial_and_missing_by_the_runs_folder():
    plant("demo/bn", "baseline", 0, 90.0, 89.0, curve=range(15))
    plant("demo/bn", "pgt", 0, None, None, status="unfinished", curve=(10, 20, 30))
    plant("demo/bn", "gc", 0, None, None, status="diverged")
    found = {item.config["method.alpha"]: item for item in items("experiment=demo/bn", "method=baseline,pgt")}
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


@pytest.mark.parametrize(("done", "evaluations"), [(0, 3), (2, 3), (3, 3), (4, 2), (7, 2), (8, 1), (9, 1), (10, 0)])
def test_the_evaluations_that_are_left_include_that_of_the_last_epoch(done, evaluations):
    """After epochs 4, 8 and 10. Synthetic images are tested on, too."""
    for chosen, images in (("experiment=demo/bn",), 899), (("data=synthetic", "recipe=demo"), 1024):
        config = dotted(identity(compose(*chosen, "recipe.epochs=10", "trainer.evaluate_every=4")))
        assert cost.work(config, done).evaluated == evaluations * images


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


def trained(experiment, seed, **measured):
    """A finished run with a speed."""
    config = compose(f"experiment={experiment}", f"seed={seed}")
    folder, _ = plant_summary(config, status="finished", epochs=config.recipe.epochs, **measured)
    return folder


def test_speeds_of_finished_runs_of_the_same_kind(capsys):
    old = trained("table1/resnet50_cosine_pgt", 7, images_per_second=4000.0, world_size=4, finished="2026-01-01")
    new = trained("table1/resnet50_cosine_pgt", 8, images_per_second=4400.0, world_size=4, finished="2026-01-02")
    two = trained("table1/resnet50_cosine_pgt", 9, images_per_second=9999.0, world_size=2, finished="2026-01-03")
    (new / "environment.json").write_text('{"starts": [{"device": "a GPU"}]}')
    assert old != new != two

    def said(*arguments):
        assert main(["plan", "experiment=table1/resnet50_cosine_pgt", *arguments]) == 0
        return capsys.readouterr().out

    assert f"resnet50: 1,100 images/s a device, measured in {new.relative_to('runs')} (a GPU)" in said()
    assert f"measured in {two.relative_to('runs')}\n" in said("--gpus=2")
    assert "published for V100" in said("--gpus=1")
    assert "published for V100" in said("trainer.precision=bf16,fp32")
    assert "10 images/s a device, stated" in said("--images-per-second=10")
    benched("gpu.json", ("step", "resnet50", 224, "pgt, PGT α = 0.25", 1234.0))
    assert "1,234 images/s a device, gpu.json" in said("--bench", "gpu.json")


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
    assert main(["plan", "experiment=amplification/resnet18_cifar10", *files]) == 0  # 32 pixels
    printed = capsys.readouterr().out
    assert "resnet18: speed not known" in printed
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


def test_a_network_that_cannot_take_the_images_is_left_out_of_a_probe(capsys):
    """The size of timm's networks is not known: neither is that of their checkpoints, nor the memory they need."""
    network = ["model.name=timm/vit_tiny_patch16_224", "data=cifar10", "data.root=none", "recipe=demo"]
    assert main(["plan", *network, "--probe"]) == 0
    printed = capsys.readouterr().out
    assert "timm/vit_tiny_patch16_224: speed not known" in printed
    assert "0.0 + ? GB more while a run trains" in printed
    assert "GiB" not in printed


def test_memory_is_in_order_beside_a_network_of_which_it_is_not_known():
    runs = [items("experiment=table1/resnet50_cosine_pgt", model)[0]
            for model in ("model=resnet18", "model.name=timm/convnext_atto", "model=resnet101")]  # fmt: skip
    names = [run.config["model.name"] for run in runs]
    [note] = plan_table(runs, dict.fromkeys(names), None).notes
    assert [line.split(",")[0] for line in note.items if "GiB" in line] == ["resnet101", "resnet18"]
    assert "0.7 + ? GB more while a run trains" in note.text


def test_a_probe_takes_the_batch_of_the_plan(monkeypatch):
    """Without batch norm a device has at least 64 images, however many devices there are."""
    measured = []
    monkeypatch.setattr(
        "pgt.tools.probe.training_steps", lambda case, *_: measured.append(case) or (lambda count: None)
    )
    overrides = ["experiment=demo/nobn", "recipe.global_batch=256"]
    assert main(["plan", *overrides, "--probe", "--gpus=8"]) == 0
    assert [case.batch for case in measured] == [64]


def test_a_plan_of_what_was_trained_says_done_and_knew_the_disk_that_it_takes(monkeypatch, capsys):
    sizes, save = [], run_folder.save

    def saved(folder, *arguments):
        save(folder, *arguments)
        sizes.append(size(folder))

    def size(folder):
        return sum(path.stat().st_size for path in (folder / "checkpoints").iterdir())

    run = last_wins(*TINY, "model=resnet20", "recipe.epochs=2")
    [before] = items(*run)
    monkeypatch.setattr("pgt.training.folder.save", saved)
    train(*run)
    [(folder, _)] = find(Path("runs"))
    assert size(folder) == pytest.approx(before.work.disk, rel=0.1)
    one = sizes[0] - (folder / "checkpoints" / "best.pt").stat().st_size
    assert max(sizes) + one == pytest.approx(before.work.disk + before.work.more_disk, rel=0.1)  # one is being written
    [item] = items(*run)
    assert (item.status, item.work.more_disk) == ("done", 0)
    assert main(["plan", *run]) == 0
    assert "Checkpoints: 0.0 GB, and 0.0 GB more while a run trains" in capsys.readouterr().out


def test_a_plan_needs_neither_data_nor_torch():
    plan = ["plan", "experiment=table2/batch256_pgt,grid/alpha_resnet20_cifar10", "method.alpha=0.3"]
    codes, found, _ = imports(["torch"], plan, env={})
    assert (codes, found) == ([0], [])


def test_a_folder_of_data_may_be_that_of_any_variable_that_is_not_set(monkeypatch, capsys):
    for name in ("IMAGENET", "TINY_IMAGENET_20", "MINE"):
        monkeypatch.delenv(name, raising=False)
    Path("own/experiment").mkdir(parents=True)
    file = "# @package _global_\ndefaults: [/experiment/demo/bn, override /data: imagefolder, _self_]\n"
    Path("own/experiment/mine.yaml").write_text(file + "data: {root: '${oc.env:MINE}/images'}")
    for experiment in ("tiny/methods", "mine", "table1/resnet18_cosine_pgt"):
        assert main(["plan", f"experiment={experiment}", "--config-dir", "own"]) == 0
        assert "distinct run" in capsys.readouterr().out
    assert main(["plan", "experiment=mine", "recipe.epochs=${oc.env:MINE}", "--config-dir", "own"]) == 2
    assert main(["train", "experiment=mine", "--config-dir", "own"]) == 2
    assert "export MINE" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("name", "file"),
    [("1", "table1.md"), ("2", "table2.md"), ("3", "table3.md"), ("demo", "demo.md"), ("tiny", "tiny.md"),
     ("tiny", "tiny.csv")],
)  # fmt: skip
def test_the_committed_tables_are_current(tmp_path, name, file):
    """Fails if results/runs or the code has changed and `make tables` was not run."""
    assert main(["table", name, "--runs", str(ROOT / "results/runs"), "--output", str(tmp_path / file)]) == 0
    assert (tmp_path / file).read_text() == (ROOT / "results/tables" / file).read_text()


def test_the_commands_of_the_committed_benchmarks_exist():
    for page in (ROOT / "results/bench").glob("*.md"):
        modules = re.findall(r"`python -m ([\w.]+)", page.read_text())
        assert modules, page
        assert all((ROOT / module.replace(".", "/")).with_suffix(".py").is_file() for module in modules), page
        assert "pgt bench" not in page.read_text(), page


def test_memory_of_a_gpu_worked_by_hand(capsys):
    assert main(["plan", "experiment=table1/resnet50_cosine_pgt", "trainer.precision=fp32"]) == 0
    gib = (256 * 2 * 43.9e6 + 12 * 25_557_032) / 2**30
    assert f"resnet50, 256 images of 224 pixels in fp32: about {gib:.1f} GiB" in capsys.readouterr().out
    assert main(["plan", "experiment=demo/bn"]) == 0
    assert "GiB" not in capsys.readouterr().out  # 64 images of 8 pixels need less than one


def test_speeds_published_for_224_pixels_say_nothing_of_smaller_images(capsys):
    assert main(["plan", "experiment=amplification/resnet18_cifar10"]) == 0
    assert "resnet18: speed not known" in capsys.readouterr().out
