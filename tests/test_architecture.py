"""Imports go down only, and what must not need torch does not."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

MAY_IMPORT = {
    "types": set(),
    "errors": set(),
    "text": set(),
    "streams": set(),
    "runs": {"errors"},
    "config": set(),
    "validate": {"config", "environment", "errors", "layout", "resources"},
    "resources": set(),
    "compose": {"config", "errors", "reproduction", "resources", "runs", "validate"},
    "environment": set(),
    "methods": {"types"},
    "models": {"types"},
    "data": {"environment", "stopping", "text", "types", "errors"},
    "weight_norms": {"errors"},
    "sinks": {"runs", "streams", "types", "errors", "weight_norms"},
    "training": {"methods", "models", "data", "environment", "runs", "types", "errors", "weight_norms", "workers"},
    "reproduction": {"resources", "runs", "types", "errors", "weight_norms"},
    "tools": {
        "training",
        "methods",
        "models",
        "data",
        "environment",
        "reproduction",
        "resources",
        "runs",
        "text",
        "types",
        "errors",
        "weight_norms",
        "workers",
    },
    "layout": {"config", "errors"},
    "stopping": {"errors"},
    "workers": {"errors", "stopping", "streams"},
    "run": {
        "layout",
        "workers",
        "run_folder",
        "assemble",
        "config",
        "data",
        "environment",
        "epochs",
        "errors",
        "runs",
        "sinks",
        "stopping",
        "training",
        "types",
    },
    "assemble": {"config", "data", "errors", "methods", "models", "training", "types"},
    "epochs": {"config", "errors", "runs", "stopping", "text", "training", "types"},
    "rank": {"config", "errors", "layout", "run", "runs", "training", "workers"},
    "run_folder": {"config", "environment", "errors", "runs", "sinks", "training", "types", "weight_norms"},
    "launch": {
        "compose",
        "config",
        "data",
        "errors",
        "rank",
        "resources",
        "run",
        "runs",
        "sinks",
        "stopping",
        "validate",
        "workers",
    },
    "cli": {
        "compose",
        "config",
        "errors",
        "launch",
        "layout",
        "options",
        "reproduction",
        "resources",
        "runs",
        "streams",
        "tools",
        "validate",
        "workers",
    },
    "options": {"environment", "errors", "reproduction"},
    "__init__": {"methods"},
}
NO_TORCH = [
    "runs",
    "weight_norms",
    "config",
    "compose",
    "environment",
    "sinks",
    "reproduction",
    "data",
    "types",
    "launch",
    "layout",
    "run",
    "rank",
    "assemble",
    "epochs",
    "stopping",
    "streams",
    "text",
    "workers",
]


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
    files = sorted((ROOT / "pgt").rglob("*.py"))
    assert len(files) > 20
    for path in files:
        part = path.relative_to(ROOT / "pgt").parts[0].removesuffix(".py")
        wrong = set(imported(path)) - MAY_IMPORT[part] - {part}
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("part", NO_TORCH)
def test_does_not_import_torch(part):
    modules = [f"pgt.{part}"]
    if part in ("sinks", "reproduction"):
        modules += [f"pgt.{part}.{path.stem}" for path in (ROOT / "pgt" / part).glob("[a-z]*.py")]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_library_needs_neither_hydra_nor_timm():
    code = (
        "import sys; from pgt import PowerGradCrossEntropy, power_grad_cross_entropy, power_transform\n"
        "sys.exit(any(name in sys.modules for name in ('hydra', 'omegaconf', 'timm', 'wandb', 'nvidia.dali')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
