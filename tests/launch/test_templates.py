"""The templates of launch/ for Kubernetes, SkyPilot, Docker and Apptainer: what they would run is run here."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, TINY, last_wins
from tests.launch.test_ranks import free_port

LAUNCH = ROOT / "launch"
INSTALL = re.compile(r"uv pip install .*'\.\[(.*)\]'")


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


def test_every_image_installs_the_same_from_the_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = [line for name in ("Dockerfile", "apptainer.def", "skypilot.yaml")
             for line in (LAUNCH / name).read_text().splitlines() if INSTALL.search(line)]  # fmt: skip
    assert len(lines) == 3
    assert all("--constraint requirements.lock" in line for line in lines)
    [extras] = {INSTALL.search(line)[1] for line in lines}
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


def test_the_images_are_given_all_that_the_package_is_built_from():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "LICENSE", "pyproject.toml",
              project["tool"]["hatch"]["build"]["hooks"]["custom"]["path"]}  # fmt: skip
    docker = (LAUNCH / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", docker, re.MULTILINE) for name in line.split()}
    [files] = re.findall(r"^%files\n((?: .*\n)+)", (LAUNCH / "apptainer.def").read_text(), re.MULTILINE)
    for given in (copied, {line.split()[0] for line in files.splitlines()}):
        assert not [name for name in needed if not {name, *map(str, Path(name).parents)} & given]
    assert re.search("^FROM (.*)$", docker, re.MULTILINE)[1] in (LAUNCH / "apptainer.def").read_text()
