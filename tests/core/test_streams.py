"""Standard output and error that go to a file. A process of its own, since pytest has its own streams."""

import subprocess
import sys
from pathlib import Path

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
