"""Standard output and error that go to a file."""

import os
import subprocess
from pathlib import Path

import pytest

from pgt.core.streams import redirected


def test_what_is_printed_goes_to_the_file_and_then_to_the_screen_again(capfd):
    with redirected(Path("logs/log.txt")):
        print("from Python", flush=True)
        subprocess.run(["echo", "from a child"], check=True)
        os.write(2, b"an error\n")
    print("done", flush=True)
    assert Path("logs/log.txt").read_text() == "from Python\nfrom a child\nan error\n"
    assert capfd.readouterr() == ("done\n", "")


def test_an_empty_file_is_removed_and_an_older_one_is_appended_to():
    with redirected(Path("log.txt")):
        pass
    assert not Path("log.txt").exists()
    for text in ("one", "two"):
        with redirected(Path("log.txt")):
            os.write(1, f"{text}\n".encode())
    assert Path("log.txt").read_text() == "one\ntwo\n"


def test_an_exception_leaves_its_traceback_there_and_says_so(capfd):
    with pytest.raises(KeyError) as caught, redirected(Path("log.txt")):
        raise KeyError("the cause")
    assert caught.value.__notes__ == ["log.txt says where"]
    assert "Traceback" in Path("log.txt").read_text()
    assert "KeyError: 'the cause'" in Path("log.txt").read_text()
    assert capfd.readouterr() == ("", "")
