"""Writes the Git commit that a wheel or sdist was built from into the package, for `pgt --version` and run folders."""

from __future__ import annotations

import subprocess  # nosec B404  # only for git, without a shell
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Commit(BuildHookInterface[Any]):
    """Adds pgt/COMMIT. Built from an sdist, the file is there already; without git, there is none."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or not (Path(self.root) / ".git").exists():
            return
        try:
            head, changes = self._git("rev-parse", "HEAD"), self._git("status", "--porcelain")
        except (OSError, subprocess.CalledProcessError):
            return
        self._temporary = TemporaryDirectory()  # it lives as long as this object
        file = Path(self._temporary.name) / "COMMIT"
        file.write_text(head[:12] + ("+" if changes else "") + "\n")
        build_data["force_include"][str(file)] = "pgt/COMMIT"

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", self.root, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # nosec B603
