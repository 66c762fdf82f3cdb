"""The sets of packages that the documentation names can be installed together."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, SECONDS


@pytest.mark.slow
def test_there_is_a_set_of_packages_for_a_v100(tmp_path):
    """torch of CUDA 12.6 is on an index of its own, so that only versions are resolved here."""
    documented = (ROOT / "docs" / "gpus.md").read_text()
    pin = re.search(r"'(torch>=2\.11,<2\.15)' torchvision '\.\[(dali-cuda12)\]'", documented)
    assert pin is not None
    (tmp_path / "constraints.txt").write_text(pin[1])
    resolve = [sys.executable, "-m", "uv", "pip", "compile", "-q", "--python-version", "3.11", "--extra", pin[2]]
    done = subprocess.run(
        [*resolve, "-c", str(tmp_path / "constraints.txt"), str(ROOT / "pyproject.toml")],
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    versions = dict(re.findall(r"^(\S+)==(\S+)", done.stdout, re.MULTILINE))
    assert (2, 11) <= tuple(map(int, versions["torch"].split(".")[:2])) < (2, 15)
    assert "nvidia-dali-cuda120" in versions
