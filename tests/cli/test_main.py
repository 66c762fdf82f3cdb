import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pgt as package
from pgt.cli.main import main
from pgt.config.resources import choices
from pgt.runs.folder import find
from tests.conftest import ROOT, SECONDS, TINY, imports, last_wins, pgt, until

SMALL = (*TINY, "model=resnet20")


def written():
    return sorted(str(path) for path in Path().rglob("*"))


def test_help_says_what_there_is_and_imports_nothing_slow():
    slow = ("torch", "hydra", "numpy", "pandas", "pydantic", "rich")
    codes, found, printed = imports(slow, ["--help"])
    assert (codes, found) == ([0], [])
    assert all(command in printed for command in ("train", "table", "figure", "data"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "the following arguments are required: command; see `pgt --help`"),
        (["table"], "the following arguments are required: what; see `pgt table --help`"),
        (["plan", "seed=0", "--gpus", "x"],
         "argument --gpus: invalid whole number value: 'x'; see `pgt plan --help`"),
        (["list"], "the following arguments are required: what; see `pgt list --help`"),
        (["trian", "seed=0"], "there is no command trian: did you mean `pgt train`?; see `pgt --help`"),
        (["xyz"], "there is no command xyz; see `pgt --help`"),
        (["--verion"], "there is no option --verion: did you mean --version?; see `pgt --help`"),
        (["mirror"], "the following arguments are required: logger; see `pgt mirror --help`"),
        (["status", "--jsn"], "unrecognized arguments: --jsn; see `pgt status --help`"),
        (["status", "demo/bn", "demo/nobn"], "unrecognized arguments: demo/nobn; see `pgt status --help`"),
    ],
)  # fmt: skip
def test_what_cannot_be_parsed_gets_one_line(capsys, arguments, line):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err == f"pgt: {line}\n"


@pytest.mark.parametrize(
    "command", ["list", "doctor", "plan", "status", "table", "figure", "report", "export", "validate", "data"]
)
def test_each_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: pgt {command} ")


@pytest.mark.parametrize("what", ["experiments", "models", "methods", "data", "recipes"])
def test_list_gives_a_line_for_each_choice_and_imports_nothing_slow(what):
    slow = ("torch", "hydra", "omegaconf", "numpy", "pandas", "pydantic")
    codes, found, printed = imports(slow, ["list", what])
    assert (codes, found) == ([0], [])
    names = choices(what if what == "data" else what[:-1])
    lines = printed.splitlines()[: len(names)]
    assert [line.split()[0] for line in lines] == names
    assert all(re.fullmatch(r"\S+  +\S.*\.", line) for line in lines), "a header is one sentence or more on one line"


@pytest.mark.parametrize("command", [["plan", "seed=0"], ["status"], ["table", "1"], ["figure", "2"], ["report"]])
def test_a_named_runs_folder_must_be_there(capsys, command):
    assert main([*command, "--runs", "nowhere"]) == 2
    assert "no folder nowhere" in capsys.readouterr().err


def test_train_help_names_the_groups(capsys):
    assert main(["train", "--help"]) == 0
    assert "groups: data, experiment, logger, method, model, recipe, schedule, trainer" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    version, commit = re.fullmatch(r"(\S+) \(commit ([0-9a-f]{12})\+?\)\n", capsys.readouterr().out).groups()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    assert (version, head[:12]) == (package.__version__, commit)


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
def test_bad_input_exits_2_with_one_line_and_writes_nothing(capfd, arguments):
    assert main(["train", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("pgt: ")
    assert err.count("\n") == 1
    assert written() == []


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (["--experiment", "demo/bn"], "write experiment=demo/bn"),
        (["--seed", "1", "experiment=demo/bn"], "write seed=1"),
        (["--epochs=1"], "write recipe.epochs=1"),
        (["experiment=demo/bn", "--runs", "x"], "write paths.runs=x"),
        (["--seed", "experiment=demo/bn"], "write seed=..."),
    ],
)
def test_a_flag_in_the_place_of_an_override_is_mended(capsys, arguments, mend):
    assert main(["train", *arguments]) == 2
    err = capsys.readouterr().err
    assert mend in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("what", "name"), [("method", "pgt"), ("launchers", "local"), ("launcher", "slurm")])
def test_list_takes_a_group_by_its_own_name_and_launchers(capsys, what, name):
    assert main(["list", what]) == 0
    assert name in [line.split()[0] for line in capsys.readouterr().out.splitlines()]


def test_data_that_are_not_as_they_should_be_get_one_line_for_a_whole_sweep(capfd):
    for split in ("train", "val"):
        Path(split, "cat").mkdir(parents=True)
    before = written()
    assert main(["train", "-m", "data=imagefolder", "data.root=.", "seed=0,1"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "no images under train: expected train/<class>/*.jpg" in err
    assert written() == before
    assert main(["train", "-m", "data=cifar10", "data.root=.", "seed=0,1"]) == 2  # a line a run
    assert [path.name for path in Path("runs").rglob("*.*")] == ["failure.json"] * 2


def test_cfg_and_info_are_hydras_and_train_nothing(capfd):
    assert main(["train", "--cfg", "job", "experiment=demo/bn", "method=gc"]) == 0
    shown = capfd.readouterr().out
    assert "max_norm: 1.0" in shown
    assert "name: resnet20" in shown
    assert main(["train", "--cfg", "job", "--resolve", "experiment=demo/bn"]) == 0
    assert "experiment: demo/bn" in capfd.readouterr().out
    assert "recipe/paper" in pgt("train", "--info", "defaults").stdout  # by Hydra's logging, which pytest replaces
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


def test_a_sweep_trains_each_and_again_returns_each_at_once(capfd):
    sweep = ["train", "-m", *SMALL, "method=baseline,pgt"]
    assert main(sweep) == 0
    assert "[2/2] resnet20 on synthetic pgt" in capfd.readouterr().out
    assert len(list(Path("runs/custom").iterdir())) == 2
    assert os.listdir("runs") == ["custom"]
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.json*")}
    assert main(sweep) == 0
    assert capfd.readouterr().out.count("finished earlier") == 2
    assert before == {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.json*")}


def test_a_diverging_run_does_not_stop_a_sweep_and_fails_each_time(capfd):
    run = ["train", *last_wins(*TINY, "model=resnet20_nobn", "recipe.epochs=2")]
    assert main([*run, "-m", "recipe.lr_start=1,0.01", "recipe.lr_peak=1e30,0.01"]) == 1
    err = capfd.readouterr().err
    assert "the loss is not finite since step" in err
    assert "2 of 4 runs failed" in err
    assert "Traceback" not in err
    assert main([*run, "recipe.lr_start=1", "recipe.lr_peak=1e30"]) == 1
    assert "diverged earlier; trainer.force=true starts over" in capfd.readouterr().out


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on():
    command = [sys.executable, "-m", "pgt", "train", "experiment=demo/bn", "recipe.epochs=500"]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
    ) as process:
        try:
            until(lambda: list(Path().rglob("last.pt")), process)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 130
    assert re.fullmatch(r"pgt: stopped by Ctrl-C after step \d+ of epoch \d+; the same command goes on there\n", err)


def unread(*arguments, lines=0, buffered=True, **streams):
    """`pgt` writing into a pipe whose reader takes so many lines and leaves: its exit code and standard error."""
    reader, writer = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, "-m", "pgt", *arguments]
    with open(reader) as read:
        streams = {"stdout": writer, "stderr": subprocess.PIPE, **streams}
        process = subprocess.Popen(command, env=environment, text=True, **streams)
        os.close(writer)
        for _ in range(lines):
            assert read.readline()
    _, err = process.communicate(timeout=SECONDS)
    return process.returncode, err


@pytest.mark.parametrize("buffered", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--help"],
        pytest.param(["table", "all"], marks=pytest.mark.slow),
        pytest.param(["status", "--runs", str(ROOT / "results/runs")], marks=pytest.mark.slow),
        pytest.param(["train", "--cfg", "job"], marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_leaves_early_ends_a_command_in_silence(arguments, buffered):
    """Either as it prints, or at its end, as a buffer is written out."""
    assert unread(*arguments, buffered=buffered) == (141, "")


@pytest.mark.slow
def test_a_reader_that_leaves_early_ends_help_and_the_doctor_in_silence():
    assert unread("--help") == (141, "")
    assert unread("doctor") == (141, "")


def test_an_error_stays_one_if_nobody_reads_it():
    assert unread("nonsense", stderr=subprocess.STDOUT) == (2, None)


@pytest.mark.slow
def test_training_goes_on_if_nobody_reads_any_more():
    sweep = ("train", "-m", *SMALL, "seed=0,1")
    left = "pgt: nobody reads standard output any more; runs go on and write to log.txt\n"
    assert unread(*sweep, lines=1) == (0, left)
    found = find(Path("runs"))
    assert [summary.status for _, summary in found] == ["finished"] * 2
    for folder, summary in found:
        assert f"test {summary.test_top1_final:.2f}%  best" in (folder / "log.txt").read_text().splitlines()[-1]
    assert unread(*sweep) == (0, left)  # which are reported only


@pytest.mark.slow
def test_processes_that_train_together_go_on_if_nobody_reads():
    run = last_wins(*SMALL, "recipe.local_batch=4", "trainer.devices=2")
    assert unread("train", *run, stderr=subprocess.STDOUT) == (0, None)
    [(_, summary)] = find(Path("runs"))
    assert (summary.status, summary.world_size) == ("finished", 2)


@pytest.mark.parametrize(("arguments", "code"), [(["--cfg", "job"], 0), (["metod.alpha=1"], 2)])
def test_a_config_is_printed_or_refused_without_what_trains(arguments, code):
    """These imports take seconds."""
    slow = ("torch", "torchvision", "timm", "pandas", "wandb")
    codes, found, _ = imports(slow, ["train", *arguments])
    assert (codes, found) == ([code], [])


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(capsys):
    for command in (["train", "-m", "seed=0,1"], ["plan", "seed=0"]):
        assert main(command) == 2
        assert (
            "recipe.global_batch=1024 is more than the 898 training samples of data=digits" in capsys.readouterr().err
        )
    assert list(Path().iterdir()) == []


def test_flags_of_hydra_that_only_print_are_hydras(capsys):
    assert main(["train", "--hydra-help"]) == 0
    assert "hydra/launcher: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--version"])
    assert "Hydra " in capsys.readouterr().out
    assert main(["train", "-sc", "install=bash"]) == 0
    assert "-F hydra_bash_completion pgt\n" in capsys.readouterr().out
    assert written() == []


@pytest.mark.parametrize(
    ("line", "completed", "others"),
    [
        ("pgt train method=gc", "method=gc_pgt", []),
        ("pgt train method.al", "method.alpha=", []),
        ("pgt train seed=0 experiment=demo/", "experiment=demo/bn", []),
        ("pgt plan experiment=", "experiment=table1/resnet18_step_pgt", []),
        ("pgt train --config-dir own experiment=", "experiment=mine", []),
        ("pgt train exp", "experiment=", ["experiment/demo="]),
        ("pgt train --config-dir=own experiment=", "experiment=mine", []),
        ("pgt train --config-dir nowhere experiment=", "", []),
        ("pgt ta", "table", []),
        ("pgt table de", "", ["demo", "train"]),
    ],
)
def test_words_are_completed(capsys, monkeypatch, line, completed, others):
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/mine.yaml").write_text("# @package _global_\nseed: 3\n")
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    out, err = capsys.readouterr()
    assert completed in out
    assert err == ""
    assert not any(word in out for word in others)


def test_fish_reads_a_word_a_line(capsys, monkeypatch):
    for line in ("pgt ", "pgt train rec", "pgt train model="):
        monkeypatch.setenv("COMP_LINE", line)
        assert main(["-sc", "query=fish"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) > 1
        assert all(" " not in found for found in lines)


@pytest.mark.parametrize(
    ("flag", "mend"),
    [
        ("--lr", "write recipe.lr_peak=3: see"),
        ("--batch-size", "write recipe.global_batch=3"),
        ("--num-workers", "write data.workers=3"),
        ("--epochs", "write recipe.epochs=3"),
    ],
)
def test_the_flag_of_another_program_is_told_as_an_override(capsys, flag, mend):
    assert main(["train", "experiment=demo/bn", flag, "3"]) == 2
    assert mend in capsys.readouterr().err


def test_what_a_module_of_ones_own_says_as_it_exits_is_shown():
    Path("leaving.py").write_text("import sys\nsys.exit('no licence for this network')\n")
    done = pgt("train", *TINY, "method=baseline", "+method.loss={_target_: leaving.loss}")
    assert done.returncode != 0
    assert "no licence for this network" in done.stderr


def test_an_argument_may_follow_an_option(capsys):
    Path("runs").mkdir()
    assert main(["figure", "4", "--runs", "runs", "demo/bn"]) == 2
    assert "no runs under runs/demo/bn" in capsys.readouterr().err
    assert main(["mirror", "tensorboard", "--runs", "runs", "demo/bn"]) == 2
    assert "no run has ended under runs/demo/bn" in capsys.readouterr().err
    assert main(["data", "verify", "--workers", "1", "no/such/folder"]) == 2
    assert "no/such/folder" in capsys.readouterr().err


def test_overrides_may_follow_an_option_of_plan(capsys):
    assert main(["plan", "experiment=demo/bn", "--gpus", "2", "seed=0,1", "method=pgt"]) == 0
    assert "2 distinct runs" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plan", "experiment=demo/bn", "--gpus", "2", "seed=0", "--nope"])
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (["-m", "--cfg", "job", "seed=0,1"], "leave out -m"),
        (["-m", "--cfg", "job", "experiment=grid/alpha_resnet18"], "leave out -m"),
        (["--cfg", "job", "experiment=grid/alpha_resnet18"], "method.alpha=0"),
        (["--cfg", "job", "seed=0,1"], "give seed one value"),
        (["--cfg", "job", "method=[gc,pgt]"], "method=gc_pgt"),
        (["--cfg", "what"], "choose from"),
        (["--resolve", "seed=0"], "--cfg"),
        (["--package", "method"], "add --cfg job"),
        (["--cfg", "job", "--package", "nope"], "'nope' not found"),
        (["--cfg", "job", "--resolve", "data=imagenet"], "export IMAGENET=..."),
    ],
)
def test_what_cannot_be_shown_gets_one_line(capsys, arguments, mend):
    assert main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert mend in err
    assert "add -m" not in err


def test_a_sweep_of_a_group_takes_keys_that_only_its_choices_have():
    """Hydra itself says "Could not override": it composes first without the swept groups."""
    agc = ("method=agc,agc_pgt", "method.transforms.0.clip_factor=0.02")
    assert main(["train", "-m", *SMALL, *agc, "hydra/job_logging=default"]) == 0
    found = [summary.identity["method"] for _, summary in find(Path("runs"))]
    assert {method["alpha"] for method in found} == {0.25, 1.0}
    assert {method["transforms"][0]["clip_factor"] for method in found} == {0.02}
    assert os.listdir() == ["runs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "shown"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, "\\u03b1"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29517"}, "α"),
    ],
)
def test_odd_environments_train(env, shown):
    done = pgt("train", *SMALL, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["plan", "--help"]])
def test_what_argparse_prints_cannot_be_lost_unnoticed(arguments, buffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pgt", *arguments], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
        )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_a_full_disk_behind_standard_output_ends_no_run_but_a_command():
    with open("/dev/full", "w") as full:
        done = unread("train", *SMALL, stdout=full)
        assert done[0] == 0
        assert done[1].count("\n") == 1
        code, said = unread("table", "1", stdout=full)
    assert (code, said.count("\n")) == (2, 1)
    assert [summary.status for _, summary in find(Path("runs"))] == ["finished"]


def test_python_m_pgt_is_the_command():
    done = subprocess.run([sys.executable, "-m", "pgt", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0]) == (0, package.__version__)


def test_a_backend_that_matplotlib_lacks_is_not_asked_for():
    done = pgt("figure", "2", "--output", "figure.svg", env={"MPLBACKEND": "nope"})
    assert (done.returncode, done.stderr) == (0, "")


def test_all_of_a_folder_is_shown_by_hydras_own_flags(capfd):
    assert main(["train", "experiment=demo/bn", "--cfg", "job"]) == 0
    assert main(["train", "experiment=demo/all", "--cfg", "job"]) == 2
    assert "names 2 runs, and one job is shown: name one" in capfd.readouterr().err
