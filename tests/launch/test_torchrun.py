"""Ranks that torchrun or srun would have started, started one by one: what each of them prints, and where."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, last_wins
from tests.launch.test_ranks import free_port

SCRIPT = """
import sys, time
from pgt.cli.main import entry
from pgt.training import run
from pgt.training.ranks import Ranks
{patch}
sys.argv = ["pgt", "train", *{overrides}]
entry()
"""


def both(*overrides, patch=""):
    """(exit code, standard error) of two ranks."""
    port, ranks = free_port(), []
    for rank in range(2):
        code = SCRIPT.format(overrides=last_wins(*overrides), patch=patch)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                       "RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": f"{rank}", "LOCAL_WORLD_SIZE": "2",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}  # fmt: skip
        ranks.append(subprocess.Popen([sys.executable, "-c", code], env=environment, text=True,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))  # fmt: skip
    said = [process.communicate(timeout=240)[1] for process in ranks]
    return [(process.returncode, text) for process, text in zip(ranks, said, strict=True)]


FAILING = """
def fail(*arguments):
    raise {error}
run._train_and_write, run.train_epochs = lambda *arguments: None, fail
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code", "line", "log"),
    [
        ("FileNotFoundError(2, 'No such file', 'a')", 2, "pgt: rank 1: a: No such file\n", "No such file"),
        ("KeyError('x')", 1, "pgt: rank 1: failed (KeyError: 'x'); log.rank1.txt says where\n", "KeyError: 'x'"),
    ],
)  # fmt: skip
def test_what_a_later_rank_fails_of_is_on_the_screen_and_in_its_log(error, code, line, log):
    first, later = both(*TINY, "model=resnet20", "recipe.local_batch=4", patch=FAILING.format(error=error))
    assert first == (0, "")
    assert later == (code, line)
    [path] = Path("runs").glob("custom/*/log.rank1.txt")
    assert "Traceback" in path.read_text()
    assert log in path.read_text()


SLOW = """
broadcast = Ranks.broadcast_result
Ranks.broadcast_result = lambda ranks, function: (time.sleep(ranks.rank), broadcast(ranks, function))[1]
"""


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("method.alpha=2",), "pgt: method.alpha must lie in [0, 1], got 2.0\n"),
        pytest.param(("data=imagefolder", "data.root=images", "recipe=demo", "recipe.local_batch=32"),
         "pgt: no images under images/train: expected images/train/<class>/*.jpg, .png, ...\n", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_refusal_is_said_by_the_first_rank_and_known_to_the_others_before_it_goes(overrides, line):
    """Rank 0 hosts the store: if it left first, the other one would complain of a lost connection."""
    for split in ("train", "val"):
        Path("images", split, "cat").mkdir(parents=True)
    first, later = both(*overrides, patch=SLOW)
    assert first == (2, line)
    assert later == (2, "")
    assert not Path("runs").exists()
