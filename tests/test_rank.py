"""Processes that torchrun or srun would have started, started one by one: what each of them says, and where."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore

from pgt.core.errors import InputError
from pgt.launch import rank
from tests.conftest import ROOT, TINY
from tests.test_workers import free_port

SCRIPT = """
import time
from pgt.cli.main import main as cli
from pgt.launch import rank
from pgt.config.compose import compose_all
from pgt.core.machine import Place

place = Place({rank}, 2, {rank}, 2, "tcp://127.0.0.1:{port}")
compose = lambda: compose_all({overrides})[0]
{patch}
cli._train = lambda arguments: rank.run_as_rank(place, compose)
cli.entry()
"""


def both(*overrides, patch=""):
    """(exit code, standard error) of two ranks."""
    port = free_port()
    ranks = []
    for number in range(2):
        code = SCRIPT.format(rank=number, port=port, overrides=overrides, patch=patch)
        command = [sys.executable, "-c", code, "train"]
        ranks.append(subprocess.Popen(command, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, text=True,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in ranks]
    return [(process.returncode, text) for process, text in zip(ranks, said, strict=True)]


FAILING = """
def train(job, ranks):
    if not ranks.first:
        raise {error}
rank.train = train
"""


@pytest.mark.parametrize(
    ("error", "code", "line", "log"),
    [
        ("FileNotFoundError(2, 'No such file', 'a')", 2, "pgt: rank 1: a: No such file\n", "pgt: rank 1: a: "),
        ("KeyError('x')", 1, "pgt: rank 1: failed (KeyError: 'x'); log.rank1.txt says where\n", "Traceback"),
    ],
)
def test_what_a_later_rank_fails_of_is_on_the_screen_and_in_its_log(error, code, line, log):
    first, later = both(*TINY, "model=resnet20", "recipe.local_batch=4", patch=FAILING.format(error=error))
    assert first == (0, "")
    assert later == (code, line)
    [path] = Path("runs").glob("custom/*/log.rank1.txt")
    assert path.read_text().startswith(log)
    assert path.read_text().endswith(line)


SLOW = """
receive = rank.receive
rank.receive = lambda store: (time.sleep(1), receive(store))[1]
"""


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("method.alpha=2",), "pgt: method.alpha must lie in [0, 1], got 2.0\n"),
        (("data=imagefolder", "data.root=images", "recipe=demo", "recipe.local_batch=32"),
         "pgt: no images under images/train: expected images/train/<class>/*.jpg, .png, ...\n"),
    ],
)  # fmt: skip
def test_a_refusal_is_said_by_the_first_rank_and_known_to_the_others_before_it_goes(overrides, line):
    """The first rank holds what they meet at: gone with it, the other one would complain of a lost connection."""
    for split in ("train", "val"):
        Path("images", split, "cat").mkdir(parents=True)
    first, later = both(*overrides, patch=SLOW)
    assert first == (2, line)
    assert later == (2, "")
    assert not Path("runs").exists()


def test_a_refusal_waits_for_its_readers_and_not_for_ever(monkeypatch):
    store = HashStore()
    refusing = threading.Thread(target=rank.refuse, args=(store, 3, InputError("no")))
    refusing.start()
    for _ in range(2):
        time.sleep(0.3)
        assert refusing.is_alive()
        with pytest.raises(InputError, match=r"^no$") as caught:
            rank.receive(store)
        assert caught.value.said
    refusing.join(1)
    assert not refusing.is_alive()
    monkeypatch.setattr(rank, "HEARD_SECONDS", 0.2)
    started = time.monotonic()
    rank.refuse(HashStore(), 2, InputError("no"))
    assert 0.2 <= time.monotonic() - started < 2
