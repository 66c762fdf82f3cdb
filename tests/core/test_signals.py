"""Helper processes and the process that they help."""

import subprocess
import sys

import pytest

from pgt.core.signals import LOOKS
from tests.conftest import ROOT

HELPER = """
import sys, time
from pgt.core.signals import leave_only_with

leave_only_with(int(sys.argv[1]))
print("helps", flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("waited_for", [True, False])
def test_a_helper_ends_soon_after_its_owner_was_killed(waited_for):
    """Even if nobody asks how the owner ended, as in a container whose first process is `sleep`."""
    with subprocess.Popen(["sleep", "300"]) as owner:
        command = [sys.executable, "-c", HELPER, str(owner.pid)]
        with subprocess.Popen(command, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True) as helper:
            assert helper.stdout.readline() == "helps\n"
            owner.kill()
            if waited_for:
                owner.wait()
            try:
                assert helper.wait(30 * LOOKS) == 0
            finally:
                helper.kill()
