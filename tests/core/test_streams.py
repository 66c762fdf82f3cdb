"""Standard output and error that go to a file. A process of its own, since pytest has its own streams."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = """
import subprocess
from pathlib import Path
from pgt.core.streams import redirected

print("before")
with redirected(Path("logs/one.txt")):
    print("from Python", flush=True)
    subprocess.run(["echo", "from a child"], check=True)
with redirected(Path("logs/one.txt")):
    print("appended")
with redirected(Path("logs/empty.txt")):
    pass
try:
    with redirected(Path("logs/failed.txt")):
        raise KeyError("the cause")
except KeyError as error:
    print("after:", *error.__notes__)
"""


def test_what_is_printed_goes_to_the_file_and_then_to_the_screen_again():
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("before\nafter: failed.txt says where\n", "")
    assert sorted(path.name for path in Path("logs").iterdir()) == ["failed.txt", "one.txt"]
    assert Path("logs/one.txt").read_text() == "from Python\nfrom a child\nappended\n"
    assert Path("logs/failed.txt").read_text().startswith("Traceback")
    assert "KeyError: 'the cause'" in Path("logs/failed.txt").read_text()


LASTING = """
import sys
from pgt.core.streams import endure, show_all_characters

show_all_characters()
endure()
for text in ("first α", "second"):
    print(text, flush=True)
print("done", file=sys.stderr)
"""


def lasting(stdout, **variables):
    """Standard error of a process that prints two lines and goes on, whatever becomes of them."""
    env = {"PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", LASTING], env=env, stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_or_a_reader_that_has_left_is_said_once_and_ends_nothing(unbuffered):
    with open("/dev/full", "w") as full:
        said = lasting(full, PYTHONUNBUFFERED=unbuffered).splitlines()
    assert "No space left on device" in said[0]
    assert said[1:] == ["done"]
    reader, writer = os.pipe()
    os.close(reader)
    said = lasting(writer, PYTHONUNBUFFERED=unbuffered).splitlines()
    os.close(writer)
    assert "nobody reads standard output" in said[0]
    assert said[1:] == ["done"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_character_that_the_encoding_lacks_is_shown_by_its_code(encoding):
    with open("shown", "w") as shown:
        assert lasting(shown, PYTHONIOENCODING=encoding) == "done\n"
    assert Path("shown").read_text() == "first \\u03b1\nsecond\n"
