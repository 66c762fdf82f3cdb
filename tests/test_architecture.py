"""Imports go down only, and what must not need torch does not."""

import ast
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FLOORS = ["core", "methods models", "data config runs", "training reproduction", "launch tools", "cli"]
"""Each room imports from lower floors only, and these pairs of one floor or across the house stay apart."""
APART = {("reproduction", room) for room in ("methods", "models", "data", "launch")} | {("data", "methods")}
NO_TORCH = ["core", "config", "runs", "reproduction", "cli", "launch"]


def imported(path):
    """The parts of pgt that a file imports anywhere, type-checking imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "pgt" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "pgt" and len(parts) > 1 and parts[1] != "__version__":
                yield parts[1]


def test_imports_go_down_only():
    height = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
    for path in (ROOT / "pgt").glob("*/**/*.py"):
        room = path.relative_to(ROOT / "pgt").parts[0]
        wrong = {other for other in imported(path) if other != room and height[other] >= height[room]}
        wrong |= {other for other in imported(path) if {(room, other), (other, room)} & APART}
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("room", NO_TORCH)
def test_does_not_import_torch(room):
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "pgt" / room).rglob("[a-z]*.py")
    ]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_library_needs_neither_hydra_nor_timm():
    code = (
        "import sys; from pgt import PowerGradCrossEntropy, power_grad_cross_entropy, power_transform\n"
        "sys.exit(any(name in sys.modules for name in ('hydra', 'omegaconf', 'timm', 'wandb', 'nvidia.dali')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_run_imports_only_what_it_needs(tmp_path):
    """Each of these modules takes up to three seconds, of every run, job and rank."""
    run = ("train", "data=digits", "model=resnet20", "recipe=demo", "recipe.epochs=1", "recipe.warmup_epochs=0")
    code = f"""
import sys
from pgt.cli.main import main
assert main({list(run)}) == 0
heavy = "timm torchvision torchmetrics sklearn scipy pandas matplotlib wandb tensorboard lightning transformers"
found = sorted({{*heavy.split()}} & sys.modules.keys())
sys.exit(f"a run imports {{found}}" if found else 0)"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
