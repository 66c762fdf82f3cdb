"""`hydra/launcher=slurm` on a real Slurm: what is submitted, what the jobs run, and what the command tells."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgt.cli.main import main
from pgt.data.tree import read_tree
from pgt.launch import launchers
from pgt.reproduction.published import all_rows
from pgt.runs.folder import DIVERGED, FINISHED, find
from pgt.runs.sweeps import queued, read_sweeps, runs_of
from pgt.tools.jpegs import generate
from tests.conftest import ROOT, SECONDS, TINY, last_wins, pgt
from tests.launch.test_slurm import RUN, SIZES, alone, begun, ended, slurm, until  # noqa: F401  # two are fixtures
from tests.training.test_stopping import assert_same, result

SHORT = last_wins(*TINY, "model=resnet20", "recipe.epochs=2")
LAUNCHER = ("hydra/launcher=slurm", "hydra.launcher.time=10")


def submit(*arguments):
    """The ids of the array's jobs, and what was printed."""
    done = pgt("train", *last_wins(*LAUNCHER, *arguments))
    assert done.returncode == 0, done.stderr
    count, job = re.search(r"(\d+) submitted as job (\d+)\n", done.stdout).groups()
    return [f"{job}_{index}" if int(count) > 1 else job for index in range(int(count))], done.stdout


def statuses():
    return sorted(summary.status for _, summary in find(Path("runs")))


def stand_in(**programs):
    """Write programs of Slurm that do what a line of shell does."""
    for name, line in programs.items():
        path = Path("bin", name)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)


@pytest.fixture
def submitted(monkeypatch):
    """A stand-in for Slurm that takes every job; gives the names of the scripts that it got."""
    Path("bin").mkdir()
    stand_in(
        scontrol="echo MaxArraySize=3",
        squeue="",
        srun="",
        sbatch='[ "$1" != --parsable ] || { printf "%s\\n" "$@" > last; echo 9; exit; }\n'
        'echo "$@" >> submitted; echo Submitted batch job 7',
    )
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:{os.environ['PATH']}")
    return lambda: Path("submitted").read_text().splitlines()


def options_of(script):
    """The options of sbatch in a script, with their values."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", Path(script).read_text(), re.MULTILINE))


def in_the_queue(*states, job=8):
    """Let the queue have an array with a job in each of these states."""
    [array] = Path("runs/.sweeps").glob("*/array0")
    rows = [f"{job}_{index}|{state}|{array.absolute()}" for index, state in enumerate(states) if state]
    stand_in(squeue="\n".join(f"echo '{row}'" for row in rows))


def test_jobs_find_modules_of_ones_own_behind_the_frozen_code(submitted, monkeypatch):
    Path("own").mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "/mine:/yours")
    assert main(("train", "-m", *SHORT, *LAUNCHER, "seed=0,1", "--config-dir", "own")) == 0
    [script] = submitted()
    [sweep] = Path("runs/.sweeps").iterdir()
    [path] = re.findall(r"^export PYTHONPATH=(\S+) PYTHONSAFEPATH=1$", Path(script).read_text(), re.MULTILINE)
    here = Path.cwd()
    assert path.split(":") == [str(here / sweep / "code"), "/mine", "/yours", str(here), str(here / "own")]
    frozen = "from pgt.reproduction import published; print(published.__file__, len(published.all_rows()))"
    done = subprocess.run([sys.executable, "-c", frozen], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.stdout == f"{here / sweep}/code/pgt/reproduction/published.py {len(all_rows())}\n", done.stderr


def asks_to_be_warned_and_requeued(script):
    signals = re.findall(r"^#SBATCH --signal=(.*)$", Path(script).read_text(), re.MULTILINE)
    return len(signals) == 1 and re.fullmatch(r"USR1@\d+", signals[0]) and options_of(script).get("requeue") == ""


@pytest.mark.parametrize("template", SIZES)
def test_a_template_asks_to_be_warned_of_the_time_limit_and_requeued(template):
    assert asks_to_be_warned_and_requeued(ROOT / "launch" / f"{template}.sbatch")


@pytest.mark.parametrize("flags", [[], ["-m", "seed=0,1"]])
def test_jobs_ask_to_be_warned_of_the_time_limit_and_requeued(submitted, flags):
    assert main(("train", *flags, *SHORT, *LAUNCHER, "hydra.launcher.warning=60")) == 0
    [script] = submitted()
    assert asks_to_be_warned_and_requeued(script)
    assert options_of(script)["signal"] == "USR1@60"


@pytest.mark.parametrize(("gpus", "tasks"), [("2", 2), ("a100:4", 4), ("0", 1)])
def test_several_nodes_get_a_task_a_gpu(submitted, gpus, tasks):
    several = ("hydra.launcher.nodes=2", f"hydra.launcher.gpus_per_node={gpus}")
    assert main(("train", "-m", *SHORT, *LAUNCHER, *several, "seed=0,1")) == 0
    [script] = submitted()
    assert f"#SBATCH --ntasks-per-node={tasks}\n" in Path(script).read_text()


def test_the_process_that_submits_lists_a_folder_once(submitted, monkeypatch):
    listed = []
    monkeypatch.setattr("pgt.data.read_tree", lambda root: listed.append(root) or read_tree(root))
    for split in ("train", "val"):
        generate(Path("set") / split, 16)
    files = ("data=imagefolder", "data.root=set", "data.backend=torchvision", "data.workers=0")
    words = [word for word in SHORT if not word.startswith(("data=", "data.num"))]
    assert main(("train", "-m", *words, *files, *LAUNCHER, "seed=0,1,2")) == 0
    assert len(listed) == 1


@pytest.mark.slow
def test_a_folder_for_the_sweep_is_taken_again_by_the_same_command_only(submitted, capsys):
    sweep = ("train", "-m", *SHORT, *LAUNCHER, "hydra.sweep.dir=mine")
    assert main((*sweep, "seed=0,1")) == 0
    assert main((*sweep, "seed=2,3")) == 2
    assert "hydra.sweep.dir=mine" in capsys.readouterr().err
    assert main((*sweep, "seed=0,1")) == 0
    arrays = [runs_of(folder) for folder in Path("mine").glob("array*")]
    assert len(submitted()) == len(arrays) == 2
    assert arrays[0] == arrays[1]


def test_a_last_job_with_nothing_to_follow_is_said_to_be_left_out(submitted, capsys):
    assert main(("train", *SHORT)) == 0
    assert main(("train", *SHORT, *LAUNCHER, "hydra.launcher.then='pgt report'")) == 0
    assert "`pgt report` is not submitted: all runs have ended" in capsys.readouterr().out
    assert not Path("submitted").exists()


def test_the_last_job_follows_all_jobs_of_the_sweep_and_gets_their_options_but_not_their_gpus(submitted, capsys):
    sweep = ("train", "-m", *SHORT, *LAUNCHER, "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=2",
             "hydra.launcher.nodes=2", "hydra.launcher.dependency=afterok:1", "+hydra.launcher.mail_type=END",
             "+hydra.launcher.exclusive=true", "+hydra.launcher.overcommit=true", "+hydra.launcher.hold=false",
             "hydra.launcher.then='pgt report'")  # fmt: skip
    assert main((*sweep, "seed=0,1")) == 0
    options = options_of(submitted()[0])
    assert (options["exclusive"], options["overcommit"], "hold" in options) == ("", "", False)

    def last():
        given, _, script = Path("last").read_text().partition("--wrap=")
        assert script.endswith("\npgt report\n")
        return {*given.split()}

    shared = {"--parsable", "--job-name=pgt-then", "--partition=gpu", "--time=10", "--cpus-per-task=1",
              "--mail-type=END", "--overcommit"}  # fmt: skip
    assert {word for word in last() if not word.startswith("--output=")} == {*shared, "--dependency=afterany:7"}
    in_the_queue("PENDING", "RUNNING")
    assert main((*sweep, "seed=0,1,2")) == 0
    assert "--dependency=afterany:7:8" in last()
    assert main((*sweep, "seed=0,1")) == 0
    assert "2 runs: 2 in the queue already, 0 submitted\n`pgt report` follows as job 9" in capsys.readouterr().out
    assert "--dependency=afterany:8" in last()
    [output] = [Path(word.partition("=")[2]) for word in last() if word.startswith("--output=")]
    assert (output.parent / "code/pgt/conf/train.yaml").exists()


def test_a_job_that_is_ending_may_be_requeued_and_is_not_submitted_again(submitted, capsys):
    sweep = ("train", "-m", *SHORT, *LAUNCHER, "seed=0,1")
    assert main(sweep) == 0
    in_the_queue("COMPLETING", None)
    assert main(sweep) == 0
    said = capsys.readouterr().out
    assert "2 runs: 1 in the queue already, 1 submitted as job 7" in said
    assert "are ending: 1; unless Slurm requeues them, give this command again" in said


def test_what_the_plugin_of_a_site_says_is_shown(submitted, capsys):
    lines = ["say how long: --time", "Batch job submission failed: Unspecified error"]
    stand_in(sbatch="\n".join([*(f"echo 'sbatch: error: {line}' >&2" for line in lines), "exit 1"]))
    assert main(("train", "-m", *SHORT, *LAUNCHER, "seed=0,1")) == 2
    assert capsys.readouterr().err == f"pgt: Slurm refuses the jobs: {'; '.join(lines)}\n"
    assert list(Path("runs").glob(".sweeps/*")) == []


@pytest.mark.parametrize("flags", [[], ["-m", "seed=0,1"]])
def test_an_experiments_options_go_with_a_launcher_of_the_command_line(submitted, flags):
    file = Path("own/experiment/mine.yaml")
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\nhydra: {launcher: {partition: gpu, gpus_per_node: 1, time: '4:00:00'}}\n")
    words = ("experiment=mine", "hydra/launcher=slurm", "--config-dir", "own")
    assert main(("train", *flags, *SHORT, *words)) == 0
    [script] = submitted()
    options = options_of(script)
    assert (options["partition"], options["gpus-per-node"], options["time"]) == ("gpu", "1", "4:00:00")
    assert options.get("array") == ("0-1%2" if flags else None)


def test_jobs_of_a_primary_config_of_ones_own_are_submitted(submitted):
    Path("own").mkdir()
    Path("own/start.yaml").write_text("defaults: [train, _self_]\nhydra: {launcher: {partition: gpu}}\n")
    words = ("--config-dir", "own", "--config-name", "start")
    assert main(("train", "-m", *SHORT, *LAUNCHER, "seed=0,1", *words)) == 0
    assert options_of(submitted()[0])["partition"] == "gpu"


def test_a_job_that_is_refused_shows_in_the_exit_code(submitted, capsys, monkeypatch):
    folder_of = launchers.folder_of

    def gone(config):
        if config.seed == 1:
            raise FileNotFoundError(2, "No such file", "a")
        return folder_of(config)

    sweep = ("train", "-m", *SHORT, *LAUNCHER, "seed=0,1,2", "hydra.sweep.dir=mine")
    with monkeypatch.context() as patch:
        patch.setattr(launchers, "folder_of", gone)
        assert main(sweep) == 2
    assert "[2/3] a: No such file" in capsys.readouterr().err
    assert len(submitted()) == 1
    assert main(sweep) == 0  # what was refused the last time is none of its faults


def test_a_sweep_in_steps_lists_all_its_runs(submitted):
    assert main(("train", "-m", *SHORT, *LAUNCHER, "seed=0,1,2", "hydra.sweeper.max_batch_size=2")) == 0
    assert len(submitted()) == 2
    [sweep] = read_sweeps(Path("runs"))
    assert sorted(about["seed"] for about in sweep.runs.values()) == [0, 1, 2]


def test_without_slurm_one_line_says_so(capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(Path.cwd()))
    assert main(("train", "-m", *SHORT, *LAUNCHER, "seed=0,1")) == 2
    assert "no scontrol" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("slurm")
class TestOnACluster:
    def test_a_job_that_is_warned_of_its_time_limit_is_requeued_and_goes_on(self, alone):  # noqa: F811
        jobs, said = submit("-m", *RUN, "seed=0,1")
        assert said.startswith("2 runs: 2 submitted as job ")
        assert sorted(job.id for job in queued().values()) == jobs
        again = pgt("train", "-m", *RUN, "seed=0,1", *LAUNCHER)  # takes seconds, in which the jobs start
        assert "2 in the queue already, 0 submitted" in again.stdout
        begun(jobs[0])
        subprocess.run(["scancel", "--signal=USR1", jobs[0]], check=True)
        done = [ended(job) for job in jobs]
        assert [(task["JobState"], task["Restarts"]) for task in done] == [("COMPLETED", "1"), ("COMPLETED", "0")]
        assert statuses() == [FINISHED, FINISHED]
        [(folder, _)] = [run for run in find(Path("runs")) if run[1].seed == 0]
        shutil.move(folder, "first")
        shutil.rmtree("runs")
        assert_same(result("first"), alone)

    def test_jobs_run_the_code_and_the_configs_of_their_submission(self, monkeypatch):
        for part in ("pgt", "conf", "results/published"):
            shutil.copytree(ROOT / part, Path("program") / part, ignore=shutil.ignore_patterns("__pycache__"))
        environment = {**os.environ, "PYTHONPATH": str(Path("program").absolute())}
        command = [sys.executable, "-P", "-m", "pgt", "train", "-m", *SHORT, *LAUNCHER, "seed=0,1,2,3"]
        done = subprocess.run(
            [*command, "+hydra.launcher.begin=now+4"], env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stderr
        Path("program/pgt/__init__.py").write_text("raise RuntimeError('edited')")
        shutil.rmtree("program/conf")
        array, last = re.search(r"4 submitted as job (\d+), (\d+)\n", done.stdout).groups()  # an array holds three
        jobs = [f"{array}_0", f"{array}_1", f"{array}_2", last]
        assert [ended(job)["JobState"] for job in jobs] == ["COMPLETED"] * 4
        assert statuses() == [FINISHED] * 4
        assert not any("edited" in path.read_text() for path in Path("runs").rglob("*_log.out"))
        [commit] = {summary.commit for _, summary in find(Path("runs"))}
        assert commit.startswith("version ")  # of the copy, which is no checkout

    def test_only_what_is_left_is_submitted_and_wait_tells_how_it_ended(self):
        jobs, _ = submit("-m", *SHORT, "recipe.lr_peak=0.01,0.02,1e30", "+hydra.launcher.begin=now+600")
        for job in jobs[1:]:
            subprocess.run(["scancel", job], check=True)
        subprocess.run(["scontrol", "update", f"JobId={jobs[0]}", "StartTime=now"], check=True)
        assert ended(jobs[0])["JobState"] == "COMPLETED"
        done = pgt("train", "-m", *SHORT, "recipe.lr_peak=0.01,0.02,1e30", *LAUNCHER, "hydra.launcher.wait=true")
        assert "3 runs: 1 ended, 2 submitted as job" in done.stdout
        assert done.returncode == 1
        assert "1 of 3 runs failed" in done.stderr
        assert statuses() == [DIVERGED, FINISHED, FINISHED]

    def test_one_run_is_one_job_with_options_of_ones_own(self):
        own = Path("own/hydra/launcher/mine.yaml")
        own.parent.mkdir(parents=True)
        own.write_text("defaults: [slurm]\nsetup: [export PGT_TEST=set, 'touch \"$PGT_TEST\"']\nnice: 7\n")
        [job], said = submit(
            *SHORT,
            "hydra/launcher=mine",
            "--config-dir",
            "own",
            "hydra.launcher.then='cat runs/*/*/summary.json > seen'",
        )
        assert said.startswith("1 run: 1 submitted as job ")
        done = ended(job)
        assert (done["JobState"], done["Nice"]) == ("COMPLETED", "7")
        assert Path("set").exists()
        assert ended(re.search(r"follows as job (\d+)", said)[1])["JobState"] == "COMPLETED"
        assert '"finished"' in Path("seen").read_text()
        assert statuses() == [FINISHED]

    def test_several_nodes_train_one_run(self):
        [job], _ = submit(*SHORT, "recipe.local_batch=4", "hydra.launcher.nodes=2")
        assert ended(job)["JobState"] == "COMPLETED"
        [(_, summary)] = find(Path("runs"))
        assert (summary.status, summary.world_size) == (FINISHED, 2)

    def test_what_slurm_refuses_is_said_in_one_line(self):
        done = pgt("train", "-m", *SHORT, *LAUNCHER, "hydra.launcher.partition=none", "seed=0,1")
        assert done.returncode == 2
        assert "partition" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert list(Path("runs").glob(".sweeps/*")) == []

    def test_hydras_own_launcher_for_slurm_trains_every_job(self):
        done = pgt("train", "-m", *SHORT, "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10", "seed=0,1")
        assert done.returncode == 0, done.stderr
        assert statuses() == [FINISHED, FINISHED]
