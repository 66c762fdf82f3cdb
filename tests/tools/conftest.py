"""Trained networks for the tests of export and validation."""

import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tests.conftest import TINY, train

GENTLE = ("recipe.epochs=2", "recipe.lr_peak=0.01", "recipe.lr_start=0.01")


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """Return a function (overrides) -> folder of a run, which is trained once a package.

    It prints nothing: what a test captures must not depend on whether an earlier one has trained the run.
    """
    root, runs = tmp_path_factory.mktemp("trained"), {}

    def folder(*overrides: str) -> Path:
        if overrides not in runs:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                summary = train(*TINY, *GENTLE, f"paths.runs={root}", *overrides)
            runs[overrides] = root / "custom" / summary.run_id
        return runs[overrides]

    return folder
