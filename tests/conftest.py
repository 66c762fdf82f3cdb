"""What the tests share. Every test runs in a folder of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from pgt.config.compose import compose_all
from pgt.config.schema import Config
from pgt.core.signals import STOP_SIGNALS
from pgt.launch.run import run
from pgt.runs.folder import Summary

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # shells start commands in the background like that
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent

TINY = ("recipe=demo", "recipe.epochs=1", "recipe.warmup_epochs=0", "recipe.global_batch=8", "recipe.local_batch=8",
        "data=synthetic", "data.num_samples=16", "data.image_size=32", "trainer.log_every=1")  # fmt: skip
"""Two steps on synthetic 32-pixel images."""
SECONDS = 120
"""That a busy machine may take for anything."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _closed():
    """Processes of a test's loaders end with it."""
    yield
    helpers = sys.modules.get("tests.data.helpers")
    while helpers is not None and helpers.opened:
        helpers.opened.pop().close()


@pytest.fixture(autouse=True)
def _signals():
    """A run that was stopped leaves signals ignored, since its process ends; that of the tests goes on."""
    yield
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a browser."""
    return program("chromium")


def program(name: str) -> str:
    """The path of a program. If it is not installed, the test is skipped, and in CI it fails."""
    found = shutil.which(name)
    if found is None:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing(f"{name} is not installed: scripts/install_test_packages.sh installs it on Debian")
    return found


def last_wins(*arguments: str) -> tuple[str, ...]:
    """A command line without the overrides of keys that are overridden again, which `pgt` refuses."""
    last = {text.partition("=")[0]: index for index, text in enumerate(arguments)}
    return tuple(
        text for index, text in enumerate(arguments) if "=" not in text or last[text.partition("=")[0]] == index
    )


def compose(*overrides: str) -> Config:
    [config] = compose_all(last_wins(*overrides))
    return config


def train(*overrides: str) -> Summary:
    """`pgt train` in this process."""
    return run(compose(*overrides))


def pgt(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """The `pgt` command in a process of its own."""
    command = [sys.executable, "-m", "pgt", *last_wins(*arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    options = {"timeout": 240, **options}
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


IMPORTS = """
import json, sys
from pgt.cli.main import main
def code(command):
    try:
        return main(command)
    except SystemExit as left:
        return left.code
modules, *commands = json.loads(sys.argv[1])
print(json.dumps([[code(command) for command in commands], sorted({*modules} & sys.modules.keys())]))
"""


def imports(
    modules: Iterable[str], *commands: Sequence[str], env: Mapping[str, str] = os.environ
) -> tuple[list[int], list[str], str]:
    """Run commands of `pgt` one after another in one new process.

    Returns:
        Their exit codes, those of the modules that they have imported, and what they print.
    """
    command = [sys.executable, "-c", IMPORTS, json.dumps([list(modules), *commands])]
    done = subprocess.run(command, capture_output=True, text=True, env={**env, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    return *json.loads(last), "\n".join(printed)


def until(reached: Callable[[], object], process: subprocess.Popen) -> None:
    """Wait until something is so that a living process brings about. Without it, the process is killed."""
    deadline = time.monotonic() + SECONDS
    try:
        while not reached():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    except BaseException as error:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # its children may have its pipes
            error.add_note(f"it has said: {process.communicate(timeout=10)}")
        raise
