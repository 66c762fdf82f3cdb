"""The templates of launch/ for Kubernetes, SkyPilot, Docker, Apptainer and Slurm: what they would run is run here.

`test_slurm.py` has those for Slurm on a real cluster. Here, a Slurm of stand-ins does not answer.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from pgt.launch.slurm import REQUEUE
from tests.conftest import ROOT, TINY, last_wins
from tests.launch.test_ranks import free_port

LAUNCH = ROOT / "launch"
INSTALL = re.compile(r"uv pip install .*--constraint requirements\.lock (?:'\.\[(.*)\]'|--requirements \S+( .*))")


@pytest.fixture
def environment(tmp_path):
    """An environment in which `pgt` is this checkout's command."""
    command = tmp_path / "bin" / "pgt"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pgt "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.path.dirname(sys.executable)}:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def load(name):
    return yaml.safe_load((LAUNCH / name).read_text())


def joined(name):
    """The text of a template, each command of several lines on one."""
    return (LAUNCH / name).read_text().replace("\\\n", " ")


def given(name):
    """The paths of the checkout that an image is given."""
    if name == "Dockerfile":
        return {path for line in re.findall(r"^COPY (.*) \S+$", joined(name), re.MULTILINE) for path in line.split()}
    [files] = re.findall(r"^%files\n((?: .*\n)+)", joined(name), re.MULTILINE)
    return {line.split()[0] for line in files.splitlines()}


def run(command, environment, **more):
    result = subprocess.run(command, env=environment | more, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_pod_of_the_kubernetes_job_trains_the_seed_of_its_index(environment):
    [pod] = load("kubernetes-job.yaml")["spec"]["template"]["spec"]["containers"]
    printed = run([*pod["command"], *pod["args"], "--cfg", "job"], environment, JOB_COMPLETION_INDEX="2")
    config = yaml.safe_load(printed)
    assert (config["seed"], config["model"]["name"], config["paths"]["runs"]) == (2, "resnet20", "/runs")


def test_the_kubernetes_job_starts_a_stopped_run_again_and_a_failed_one_not():
    job = load("kubernetes-job.yaml")["spec"]
    [rule] = [rule for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailIndex"]
    assert rule["onExitCodes"]["values"] == [1, 2]
    mounted = {mount["name"] for mount in job["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["template"]["spec"]["volumes"]}


def test_one_node_of_skypilot(environment):
    task = load("skypilot.yaml")
    values = task["envs"] | {"RUN": task["envs"]["RUN"] + " --cfg job", "SKYPILOT_NUM_NODES": "1"}
    config = yaml.safe_load(run(["sh", "-c", task["run"]], environment, **values))
    assert (config["seed"], config["method"]["alpha"], config["paths"]["runs"]) == (0, 0.25, "/runs")
    assert set(task["resources"]["job_recovery"]["recover_on_exit_codes"]) == {128 + 10, 128 + 15}


@pytest.mark.slow
def test_two_nodes_of_skypilot(environment, tmp_path):
    task = load("skypilot.yaml")
    script = task["run"].replace("/runs", str(tmp_path / "runs")).replace("29500", str(free_port()))
    overrides = last_wins(*TINY, "model=resnet20", "recipe.local_batch=4")
    values = {"RUN": shlex.join(o for o in overrides if not o.startswith("paths.runs")), "SKYPILOT_NUM_NODES": "2",
              "SKYPILOT_NUM_GPUS_PER_NODE": "1", "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1"}  # fmt: skip
    nodes = [subprocess.Popen(["bash", "-c", script], env=environment | values | {"SKYPILOT_NODE_RANK": str(rank)},
                              stdout=subprocess.PIPE, text=True) for rank in range(2)]  # fmt: skip
    printed = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert "on 2 devices" in printed[0]
    assert len(list((tmp_path / "runs").glob("custom/*/summary.json"))) == 1


@pytest.mark.parametrize("name", ["kubernetes-job.yaml", "skypilot.yaml"])
def test_a_template_that_ends_with_code_1_says_that_a_killed_rank_has_it_too(name):
    comments = " ".join(re.findall("# (.*)", (LAUNCH / name).read_text()))
    assert re.search(r"\b1\b[^.]*\branks?\b[^.]*\bkilled\b", comments)


def test_every_image_installs_the_same_from_the_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installs = [INSTALL.findall(joined(name)) for name in ("Dockerfile", "apptainer.def", "skypilot.yaml")]
    assert [len(found) for found in installs] == [1, 1, 1]
    [extras] = {tuple(names.split(",") if names else options.split()[1::2]) for [(names, options)] in installs}
    assert set(extras) <= set(project["project"]["optional-dependencies"])


def test_a_change_of_the_sources_leaves_the_layer_of_the_dependencies():
    before, install, _ = re.split(r"^(RUN .*requirements\.lock.*)$", joined("Dockerfile"), flags=re.MULTILINE)
    assert re.findall("^COPY (.*) ", before, re.MULTILINE) == ["pyproject.toml requirements.lock"]
    assert "ARG" not in before
    assert "--requirements pyproject.toml" in install


def test_the_images_have_the_compiler_that_torch_compile_asks_for():
    for name in ("Dockerfile", "apptainer.def"):
        assert "g++" in re.search("apt-get install (.*)", joined(name))[1].split()


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_an_image_has_the_commit_that_its_first_lines_ask_git_for(name, tmp_path):
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@example.com"]
    repository = tmp_path / "repository"
    subprocess.run([*git, "init", "--quiet", str(repository)], check=True)
    for command in (["add", "."], ["commit", "--quiet", "--message=one"], ["tag", "--message=one", "v1"]):
        (repository / "file").write_text("a line\n")
        subprocess.run([*git, *command], cwd=repository, check=True)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=repository, text=True)[:12]
    [ask] = re.findall(r'--build-arg COMMIT="(\$\(git .*\))" ', (LAUNCH / name).read_text())
    for text, expected in (("a line\n", head), ("another line\n", f"{head}+")):
        (repository / "file").write_text(text)
        assert subprocess.check_output(["bash", "-c", f"echo {ask}"], cwd=repository, text=True) == f"{expected}\n"

    source = tmp_path / "source"
    for path in given(name):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, source / path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / path, source / path)
    write, _ = re.search(r'(echo "[^"]*COMMIT[^"]*"[^\n]* > \S+).*?(uv pip install)', joined(name), re.DOTALL).groups()
    write = ["sh", "-c", write.replace("{{ COMMIT }}", "$COMMIT")]
    assert subprocess.run(write, cwd=source, env={"PATH": os.environ["PATH"]}, capture_output=True).returncode
    subprocess.run(write, cwd=source, env={"PATH": os.environ["PATH"], "COMMIT": expected}, check=True)
    build = [sys.executable, "-m", "hatchling", "build", "--target=wheel"]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    [wheel] = source.glob("dist/*.whl")
    assert zipfile.ZipFile(wheel).read("pgt/COMMIT").decode() == f"{expected}\n"


def test_the_images_are_given_all_that_the_package_is_built_from():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "LICENSE", "pyproject.toml",
              project["tool"]["hatch"]["build"]["hooks"]["custom"]["path"]}  # fmt: skip
    for image in ("Dockerfile", "apptainer.def"):
        assert not [name for name in needed if not {name, *map(str, Path(name).parents)} & given(image)]
    assert re.search("^FROM (.*)$", joined("Dockerfile"), re.MULTILINE)[1] in joined("apptainer.def")


SCRIPTS = {name: (LAUNCH / f"{name}.sbatch").read_text() for name in ("one_node", "several_nodes", "sweep")}
SCRIPTS["launcher"] = "\n".join(["srun", *REQUEUE])

STAND_IN = """#!/bin/sh
echo "${0##*/} $*" >> calls
answer=$(sed -n "$(grep -c "^${0##*/} " calls)p" "${0##*/}")
[ -n "$answer" ] || { echo "Socket timed out on send/recv operation" >&2; exit 1; }
echo "$answer"
"""
"""A program of Slurm that gives the next line of the file of its name. It fails if that line is empty or missing."""


@pytest.mark.parametrize(
    ("script", "in_array"), [*((name, True) for name in SCRIPTS), ("one_node", False), ("several_nodes", False)]
)
@pytest.mark.parametrize(
    ("code", "squeue", "scontrol", "asked", "requeued"),
    [
        (138, ["RUNNING"], ["done"], 1, 1),
        (143, ["", "", "", "", "RUNNING"], ["done"], 5, 1),
        (138, ["RUNNING", "", "RUNNING"], ["", "done"], 3, 2),
        (143, ["RUNNING", "COMPLETING"], [""], 2, 1),  # cancelled meanwhile, or requeued although the answer was lost
        (143, ["COMPLETING"], [], 1, 0),  # cancelled
        (138, [], [], 5, 0),
        (1, ["RUNNING"], ["done"], 0, 0),
    ],
)
def test_a_stopped_job_is_requeued_once_slurm_answers(script, in_array, code, squeue, scontrol, asked, requeued):
    programs = {"srun": f"exit {code}", "sleep": 'echo "sleep $*" >> calls', "squeue": STAND_IN, "scontrol": STAND_IN}
    Path("bin").mkdir()
    for name, text in programs.items():
        Path("bin", name).write_text(text if text == STAND_IN else f"#!/bin/sh\n{text}\n")
        Path("bin", name).chmod(0o755)
    Path("squeue").write_text("".join(f"{line}\n" for line in squeue))
    Path("scontrol").write_text("".join(f"{line}\n" for line in scontrol))
    Path("calls").touch()
    array = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"} if in_array else {}
    variables = {"PATH": f"{Path('bin').absolute()}:/usr/bin:/bin", "SLURM_JOB_ID": "12" if array else "15", **array}
    assert subprocess.run(["bash", "-c", SCRIPTS[script]], env=variables, capture_output=True).returncode == code
    calls, job = Path("calls").read_text().splitlines(), "12_3" if array else "15"
    assert sum(call.startswith("squeue ") and f"--jobs={job} " in call for call in calls) == asked
    assert calls.count(f"scontrol requeue {job}") == requeued
    assert sum(call.startswith("sleep ") for call in calls) >= asked - 1  # a pause between two questions


def test_make_help_names_every_target_that_says_what_it_does():
    described = re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    printed = subprocess.check_output(["make", "--no-print-directory", "-C", str(ROOT), "help"], text=True)
    assert [line.split()[0] for line in printed.splitlines()] == described
    assert "test-slow" in described
