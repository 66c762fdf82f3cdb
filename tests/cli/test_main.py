import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import pgt as package
from pgt.cli.main import main
from pgt.runs.folder import find
from scripts.bench.loss import each_that_fits
from tests.conftest import ROOT, TINY, pgt


def written():
    return sorted(str(path) for path in Path().rglob("*"))


def test_help_says_what_there_is_and_imports_nothing_slow():
    code = (
        "import sys; from pgt.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'hydra', 'numpy', 'rich')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("train", "table", "figure"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "the following arguments are required: command; see `pgt --help`"),
        (["table"], "the following arguments are required: what; see `pgt table --help`"),
        (["plan", "seed=0", "--gpus", "x"],
         "argument --gpus: invalid whole number value: 'x'; see `pgt plan --help`"),
    ],
)  # fmt: skip
def test_what_cannot_be_parsed_gets_one_line(capsys, arguments, line):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err == f"pgt: {line}\n"


def test_train_help_names_the_groups():
    done = pgt("train", "--help")
    assert done.returncode == 0
    assert "groups: data, experiment, logger, method, model, recipe, schedule, trainer" in done.stdout


def test_version():
    assert pgt("--version").stdout.strip() == package.__version__


@pytest.mark.parametrize(
    "arguments",
    [
        ["metod.alpha=0.5"],
        ["method.alpha=1.3"],
        ["-m", "metod.alpha=0.1,0.2"],
        ["-m", "method=pgt", "method.alpha=0.5,1.3"],
        ["data=imagefolder", "data.root=nowhere"],
        ["-m", "data=imagefolder", "data.root=nowhere", "seed=0,1"],
        ["--cfg", "job", "metod.alpha=0.5"],
        ["--foo", "experiment=demo/bn"],
        [],
    ],
)
def test_bad_input_exits_2_with_one_line_and_writes_nothing(arguments):
    done = pgt("train", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pgt: ")
    assert done.stderr.count("\n") == 1
    assert written() == []


def test_data_that_are_not_as_they_should_be_get_one_line_for_a_whole_sweep():
    for split in ("train", "val"):
        Path(split, "cat").mkdir(parents=True)
    before = written()
    done = pgt("train", "-m", "data=imagefolder", "data.root=.", "seed=0,1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pgt: no images under train: expected train/<class>/*.jpg, .png, ...\n"
    assert pgt("train", "-m", "data=cifar10", "data.root=.", "seed=0,1").returncode == 2  # a line for each run
    assert written() == before


def test_cfg_and_info_are_hydras_and_train_nothing():
    shown = pgt("train", "--cfg", "job", "experiment=demo/bn", "method=gc")
    assert shown.returncode == 0
    assert "max_norm: 1.0" in shown.stdout
    assert "name: resnet20" in shown.stdout
    resolved = pgt("train", "--cfg", "job", "--resolve", "experiment=demo/bn")
    assert "experiment: demo/bn" in resolved.stdout
    defaults = pgt("train", "--info", "defaults")
    assert "recipe/paper" in defaults.stdout
    assert written() == []


def test_torch_is_not_imported_for_config_or_typo():
    """Half of the promise that both answer within 2 seconds; the other half is Hydra's 0.5."""
    poison = Path("poison/torch")
    poison.mkdir(parents=True)
    (poison / "__init__.py").write_text("raise RuntimeError('torch was imported')")
    env = {"PYTHONPATH": os.pathsep.join([str(poison.parent.resolve()), str(ROOT)])}
    assert pgt("train", "--cfg", "job", env=env).returncode == 0
    typo = pgt("train", "metod.alpha=1", env=env)
    assert typo.returncode == 2
    assert "did you mean 'method.alpha'?" in typo.stderr


def test_a_sweep_trains_each_and_again_returns_each_at_once():
    sweep = ["train", "-m", *TINY, "model=resnet20", "method=baseline,pgt"]
    first = pgt(*sweep)
    assert first.returncode == 0, first.stderr
    assert "[2/2] resnet20 on synthetic pgt" in first.stdout
    assert len(list(Path("runs/custom").iterdir())) == 2
    assert os.listdir("runs") == ["custom"]
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.json*")}
    again = pgt(*sweep)
    assert again.returncode == 0
    assert again.stdout.count("finished earlier") == 2
    assert before == {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.json*")}


def test_a_diverging_run_does_not_stop_a_sweep():
    done = pgt("train", "-m", *TINY, "model=resnet20_nobn", "seed=0", "recipe.lr_start=1,0.01",
               "recipe.lr_peak=1e30,0.01", "recipe.epochs=2")  # fmt: skip
    assert done.returncode == 1
    assert "the loss is not finite since step" in done.stderr
    assert "2 of 4 runs failed" in done.stderr
    assert "Traceback" not in done.stderr
    again = pgt("train", *TINY, "model=resnet20_nobn", "recipe.lr_start=1", "recipe.lr_peak=1e30", "recipe.epochs=2")
    assert "diverged earlier" in again.stdout


def test_ctrl_c_says_how_to_go_on():
    command = [sys.executable, "-m", "pgt.cli", "train", "experiment=demo/bn", "recipe.epochs=500"]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not list(Path().rglob("last.pt")) and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err == "pgt: interrupted; the same command goes on from its last checkpoint\n"


def unread(*arguments, lines=0, buffered=True, **streams):
    """`pgt` writing into a pipe whose reader takes so many lines and leaves: its exit code and standard error."""
    reader, writer = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, "-m", "pgt.cli", *arguments]
    with open(reader) as read:
        streams = {"stdout": writer, "stderr": subprocess.PIPE, **streams}
        process = subprocess.Popen(command, env=environment, text=True, **streams)
        os.close(writer)
        for _ in range(lines):
            assert read.readline()
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        ["table", "all"],
        ["status", "--runs", str(ROOT / "results/runs")],
        ["train", "--help"],
        ["train", "--cfg", "job"],
    ],
)
def test_a_reader_that_leaves_early_ends_a_command_in_silence(arguments, buffered):
    """Where it prints, or where what it has printed is written out at its end."""
    assert unread(*arguments, buffered=buffered) == (141, "")


def test_a_reader_that_leaves_early_ends_help_and_the_doctor_in_silence():
    assert unread("--help") == (141, "")
    assert unread("doctor") == (141, "")


def test_an_error_stays_one_where_nobody_reads_it():
    assert unread("nonsense", stderr=subprocess.STDOUT) == (2, None)


def test_training_goes_on_where_nobody_reads_any_more():
    sweep = ("train", "-m", *TINY, "model=resnet20", "seed=0,1")
    left = "pgt: nobody reads standard output any more; runs go on and write to log.txt\n"
    assert unread(*sweep, lines=1) == (0, left)
    found = find(Path("runs"))
    assert [summary.status for _, summary in found] == ["finished"] * 2
    for folder, summary in found:
        assert f"test {summary.test_top1_final:.2f}%  best" in (folder / "log.txt").read_text().splitlines()[-1]
    assert unread(*sweep) == (0, left)  # which are reported only


def test_processes_that_train_together_go_on_where_nobody_reads():
    run = (*TINY, "model=resnet20", "recipe.local_batch=4", "trainer.devices=2")
    assert unread("train", *run, stderr=subprocess.STDOUT) == (0, None)
    [(_, summary)] = find(Path("runs"))
    assert (summary.status, summary.world_size) == ("finished", 2)


def bench(name, *arguments):
    command = [sys.executable, "-m", f"scripts.bench.{name}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


def test_the_benchmark_of_the_loss_prints_a_table():
    done = bench("loss", "--rounds", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "[256, 1000] float32 on CPU" in done.stdout
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows[2:] == ["cross_entropy", "pgt", "pgt, surrogate", "authors' hook"]


def test_the_benchmark_of_the_step_prints_a_table():
    done = bench("step", "--rounds", "2", "--steps", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("resnet18, 32 x 64 x 64, fp32; 2 rounds of 1 steps in turns")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    loops = ["bare loop", "pgt, baseline", "pgt, norms each step", "pgt, PGT α = 0.25", "timm"]
    for rows in (cells[:7], cells[7:]):  # ResNet-18 and ResNet-50
        assert rows[0] == ["loop", "ms a step", "images/s", "× bare loop", "× pgt, baseline"]
        assert [row[0] for row in rows[2:]] == loops
        assert all(float(figure.replace(",", "")) > 0 for row in rows[2:] for figure in row[1:])
        assert rows[2][3] == rows[3][4] == "1.000"
    assert done.stdout.count("Norms: ") == 2


def test_the_benchmark_of_the_loaders_prints_a_table():
    done = bench("loader", "--batch", "4", "--batches", "1", "--rounds", "1", "--workers", "1")
    assert done.returncode == 0
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|")][2:]
    names = ["torchvision, Pillow", "timm create_loader", "pgt, torchvision decode_jpeg", "pgt, DALI on the CPU"]
    assert [row[1].strip() for row in rows] == names
    assert all(float(row[2]) > 0 for row in rows)


def test_installed_elsewhere_it_carries_its_configs(tmp_path):
    """The wheel, unpacked as an installer would, in a folder that is no checkout."""
    wheels, site = tmp_path / "wheels", tmp_path / "a site"
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(ROOT)],
                   check=True, capture_output=True)  # fmt: skip
    [wheel] = wheels.glob("powergrad-*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)], check=True)

    def installed(*arguments: str) -> str:
        command = [sys.executable, "-m", "pgt.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(site)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "resnet20_nobn" in installed("train", "--cfg", "job", "experiment=demo/nobn")
    assert "77.952" in installed("table", "1")
    assert "V100" in installed("plan", "experiment=table1/resnet50_cosine_pgt")
    installed("report", "--runs", str(ROOT / "results/runs"), "--no-figures")
    assert (site / "pgt" / "py.typed").exists()


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [(["--help"], 0.3), (["train", "--cfg", "job"], 2.0), (["train", "metod.alpha=1"], 2.0)],
)
def test_answers_in_a_blink(arguments, seconds):
    """The middle of five, so that a busy machine does not decide."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        pgt(*arguments)
        times.append(time.perf_counter() - started)
    assert statistics.median(times) < seconds


def test_a_diverged_run_fails_each_time(capsys):
    command = ["train", *TINY, "model=resnet20", "recipe.lr_peak=1e30", "recipe.epochs=2"]
    assert main(command) == 1
    assert main(command) == 1
    assert "diverged earlier; trainer.force=true starts over" in capsys.readouterr().out


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(capsys):
    for command in (["train", "-m", "seed=0,1"], ["plan", "seed=0"]):
        assert main(command) == 2
        assert (
            "recipe.global_batch=1024 is more than the 898 training samples of data=digits" in capsys.readouterr().err
        )
    assert list(Path().iterdir()) == []


def test_all_of_a_folder_is_shown_by_hydras_own_flags(capfd):
    assert main(["train", "experiment=demo/bn", "--cfg", "job"]) == 0
    assert main(["train", "experiment=demo/all", "--cfg", "job"]) == 2
    assert "names 2 runs: add -m" in capfd.readouterr().err


def test_a_benchmark_goes_on_past_a_case_that_does_not_fit(monkeypatch):
    def measured(case):
        if case == "large":
            raise torch.OutOfMemoryError
        return f"{case}: measured"

    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "this GPU")
    told = each_that_fits(["small", "large", "other"], measured)
    assert told.split("\n\n") == ["small: measured", "large: more memory than this GPU has", "other: measured"]
