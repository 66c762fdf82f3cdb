"""What is published: sdist and wheel, installed into clean environments and used from empty folders."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pgt
from pgt.tools import starter
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
UV = [sys.executable, "-m", "uv"]
LINE = "pip install 'powergrad[train]'"
NO_NETWORK = re.compile("error sending request|network was disabled|HTTP status server error")
"""What uv says when an index does not answer. One that answers, and has no versions that fit, is another matter."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of an sdist of the checkout and of the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return folder


def install(python, *what, **environment):
    """`uv pip install`. If no index answers, the test is skipped, and in CI it fails."""
    command = [*UV, "pip", "install", "--quiet", "--python", str(python), *what]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode and NO_NETWORK.search(done.stderr) and not os.environ.get("CI"):
        pytest.skip(f"the packages cannot be installed: {done.stderr}")
    assert done.returncode == 0, done.stderr


class Environment:
    """A new environment that has the wheel, with the versions of requirements.lock."""

    def __init__(self, folder, wheel, extra=""):
        self.python = folder / "bin" / "python"
        subprocess.run([*UV, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        install(self.python, "-c", str(ROOT / "requirements.lock"), f"{wheel}{extra}")

    def __call__(self, *command, code=0, program="pgt"):
        words = [str(self.python.parent / program), *map(str, command)]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(words, env={**clean, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def library(built, tmp_path_factory):
    """`pip install powergrad`."""
    [wheel] = built.glob("*.whl")
    return Environment(tmp_path_factory.mktemp("library") / "venv", wheel)


@pytest.fixture(scope="module")
def framework(built, tmp_path_factory):
    """`pip install 'powergrad[train]'`."""
    [wheel] = built.glob("*.whl")
    return Environment(tmp_path_factory.mktemp("framework") / "a venv", wheel, "[train]")


def test_only_an_index_that_does_not_answer_skips_a_test(monkeypatch):
    unreachable, unsatisfiable = ("--index-url=http://127.0.0.1:9/simple", "none==1"), ("--no-index", "pytest>9999")

    def outcome(*what):
        try:
            install(sys.executable, "--dry-run", *what, UV_HTTP_RETRIES="0")
        except (AssertionError, pytest.skip.Exception) as ended:
            return type(ended)
        return None

    monkeypatch.delenv("CI", raising=False)
    assert (outcome(*unreachable), outcome(*unsatisfiable)) == (pytest.skip.Exception, AssertionError)
    monkeypatch.setenv("CI", "1")
    assert outcome(*unreachable) is AssertionError


def test_sdist_and_wheel_hold_what_a_user_needs_and_no_more(built):
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"pgt/py.typed", "pgt/COMMIT", "pgt/conf/train.yaml", "pgt/published/table1.csv"} <= {*names}
    assert {f"pgt/starter/{name}" for name, _ in starter.files()} <= {*names}
    assert {name.partition("/")[0] for name in names} == {"pgt", f"powergrad-{pgt.__version__}.dist-info"}
    with tarfile.open(sdist) as archive:
        tops = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    assert {"pgt", "conf", "launch", "examples", "LICENSE", "README.md", "SECURITY.md"} <= tops
    assert not {"tests", "docs", ".ci"} & tops


def test_torch_alone_gives_losses_transforms_and_alterations(library):
    Path("use.py").write_text("""
import sys
import torch
import pgt

network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5))
x, y = torch.randn(6, 3, 8, 8), torch.randint(5, (6,))
for loss in (pgt.PowerGradCrossEntropy(0.25), pgt.SurrogateCrossEntropy(0.25, label_smoothing=0.1)):
    loss(network(x), y).backward()
pgt.clip_grad_norm(network.named_parameters(), max_norm=1.0)
pgt.clip_grad_value(network.named_parameters(), clip_value=0.1)
pgt.clip_grad_unitwise(network.named_parameters(), clip_factor=0.01)
alterations = [
    pgt.Amplification(measure="cancellation", threshold="mean", select="above", ratio=None, kinds=["conv"],
                      where="activations", factor=2, epochs=[[1, 2]], refresh=1),
    pgt.WeightCorrection(rho=0.5, every=1, history=2, width=4, target="weights", fit="direction", fit_steps=1,
                         fit_lr=1e-3, layers=["0"]),
]
for alteration in alterations:
    alteration.attach(network, lambda step: 0.1)
for step in range(4):
    pgt.power_grad_cross_entropy(network(x), y, 0.25).backward()
    for alteration in alterations:
        alteration(network.named_parameters(), step)
assert pgt.StateCorrection
framework = {"hydra", "omegaconf", "pydantic", "timm", "torchvision", "pandas", "numpy", "rich", "yaml"}
assert not framework & sys.modules.keys(), framework & sys.modules.keys()
try:
    pgt.train(["experiment=demo/bn"])
except Exception as error:
    assert "pip install 'powergrad[train]'" in str(error), error
else:
    raise SystemExit("trained without the framework")
""")
    library("-W", "ignore:Failed to initialize NumPy", "use.py", program="python")


@pytest.mark.parametrize(
    "command",
    [["train", "experiment=demo/bn"], ["table", "1"], ["doctor"], ["validate", "--help"]],
)
def test_a_command_without_the_framework_names_the_line_that_installs_it(library, command):
    done = library(*command, code=2)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert LINE in done.stderr
    assert os.listdir() == []


def test_without_the_framework_the_command_says_what_it_is_and_copies_files(library):
    commit = re.fullmatch(r"(\S+) \(commit [0-9a-f]{12}\+?\)\n", library("--version").stdout)
    assert commit[1] == pgt.__version__
    assert "train" in library("--help").stdout
    library("init", "own")
    assert Path("own/launch/one_node.sbatch").read_text() == (ROOT / "launch/one_node.sbatch").read_text()


def test_types_are_seen_from_outside(library):
    Path("typed.py").write_text(
        "from pgt import PowerGradCrossEntropy, clip_grad_norm, power_grad_cross_entropy\n"
        "loss = PowerGradCrossEntropy(alpha=0.25)\n"
        "reveal_type(power_grad_cross_entropy)\n"
        "PowerGradCrossEntropy(alpha='a quarter')\n"
        "clip_grad_norm([], max_norm=1.0, clip=2)\n"
    )
    check = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(library.python), "typed.py"]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    said = subprocess.run(check, capture_output=True, text=True, env=clean).stdout
    assert re.search(r'typed.py:3: note: .*"def \(logits: torch\S*Tensor, target: torch\S*Tensor, alpha: float', said)
    assert re.findall(r"typed.py:(\d): error: .*\[([a-z-]+)\]", said) == [("4", "arg-type"), ("5", "call-arg")], said


def test_the_framework_trains_and_reports_from_an_empty_folder(framework):
    demo = ("experiment=demo/bn", "recipe.epochs=1", "recipe.warmup_epochs=0")
    framework("train", *demo)
    [summary] = Path("runs/demo/bn").glob("*/summary.json")
    assert json.loads(summary.read_text())["status"] == "finished"
    assert re.fullmatch(r"[0-9a-f]{12}\+?", json.loads(summary.read_text())["commit"])
    Path("use.py").write_text(f"""
import pgt
from pgt.cli.main import main
for command in ("table 1", "plan experiment=table1/resnet50_cosine_pgt", "report --no-figures", "init own"):
    assert main(command.split()) == 0
pgt.train({[*demo, "seed=1"]})
""")
    said = framework("use.py", program="python").stdout
    assert "77.952" in said
    assert "V100" in said
    assert len([*Path("runs/demo/bn").glob("*/summary.json")]) == 2
    framework("train", "experiment=mine", "method.alpha=0.5", *demo[1:], "--config-dir", "own")
    assert len([*Path("runs/mine").glob("*/summary.json")]) == 1
    assert "train/<class>" in framework("own/scripts/prepare_imagenet.py", "--help", program="python").stdout


def test_the_licence_of_a_wheel_names_that_of_the_digits(built):
    [wheel] = built.glob("*.whl")
    archive, info = zipfile.ZipFile(wheel), f"powergrad-{pgt.__version__}.dist-info"
    assert "CC BY 4.0" in archive.read(f"{info}/licenses/pgt/data/digits.LICENSE").decode()
    assert "\nLicense-Expression: Apache-2.0 AND CC-BY-4.0\n" in archive.read(f"{info}/METADATA").decode()
    assert "CC BY 4.0" in (ROOT / "README.md").read_text().splitlines()[-1]
