"""Which run a config names: image folders tell which files they hold."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgt.cli.main import main
from pgt.config.compose import compose_all
from pgt.config.identity import run_id
from pgt.core.errors import InputError
from pgt.data import image_file
from pgt.data.tree import read_tree
from pgt.launch.run import run
from pgt.runs.folder import find
from pgt.training.job import folder_of
from tests.conftest import TINY, compose

FILES = (*(text for text in TINY if not text.startswith(("data=", "data.num_samples"))), "data=imagefolder",
         "data.backend=torchvision", "data.workers=0", "model=resnet20")  # fmt: skip


def images(root, seed, name="{}.png"):
    """Eight random images, under the same names whatever the seed."""
    rng = np.random.default_rng(seed)
    for split, label, i in [(s, c, i) for s in ("train", "val") for c in "ab" for i in range(4)]:
        path = Path(root, split, label, name.format(i))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)


def on(root, *more):
    return compose(*FILES, f"data.root={root}", *more)


@pytest.fixture
def roots():
    images("one", 0)
    images("other_pixels", 1)
    images("other_names", 0, "image{}.png")
    return ["one", "other_pixels", "other_names"]


def test_image_folders_of_one_shape_are_runs_of_their_own(roots):
    assert main(["train", "-m", *FILES, f"data.root={','.join(roots)}"]) == 0
    found = find(Path("runs"))
    assert len(found) == len({summary.run_id for _, summary in found}) == 3
    assert len({summary.identity["data"]["files"] for _, summary in found}) == 3
    assert {folder for folder, _ in found} == {folder_of(on(root)) for root in roots}
    assert {summary.run_id for _, summary in found} == {run_id(summary.identity) for _, summary in found}


def test_data_that_have_moved_are_the_same_run_and_a_line_says_so(roots, capsys):
    first = run(on("one"))
    assert "data.root" not in capsys.readouterr().out
    Path("one").rename("moved")
    assert run(on("moved")) == first
    assert f"data.root was one and is now moved, the same data ({first.manifest})" in capsys.readouterr().out
    run(on("./moved", "trainer.force=true"))
    capsys.readouterr()
    run(on("moved"))
    assert "data.root" not in capsys.readouterr().out


def test_a_named_data_set_has_the_id_that_its_config_gives():
    config = compose("experiment=demo/bn")
    assert folder_of(config) == Path("runs/demo/bn/2d4294a379e6")


def test_a_sweep_over_one_folder_twice_is_refused():
    with pytest.raises(InputError, match="two jobs of this sweep are the same run"):
        compose_all([*FILES, "data.root=a", "trainer.checkpoint_minutes=5,6"], multirun=True)
    with pytest.raises(InputError, match="two jobs of this sweep are the same run"):
        compose_all(["data=cifar10", "data.root=a,b"], multirun=True)
    Path("a").mkdir()
    Path("link").symlink_to("a")
    for same in ("./a", "link", Path("a").absolute()):
        with pytest.raises(InputError, match="two jobs of this sweep are the same run"):
            compose_all([*FILES, f"data.root=a,{same}"], multirun=True)


@pytest.mark.filterwarnings("ignore")  # importing optuna warns
@pytest.mark.parametrize("sweeper", [(), ("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid")])
def test_a_sweep_lists_a_folder_once_before_it_begins_and_once_a_job(monkeypatch, sweeper):
    images("one", 0)
    listed = []
    monkeypatch.setattr("pgt.data.read_tree", lambda root: listed.append(root) or read_tree(root))
    sweep = ["train", "-m", *FILES, "data.root=one", "seed=choice(0,1)", *sweeper]
    assert main(sweep) == 0
    assert len(listed) == 1 + 2
    images("one", 1)
    assert main(sweep) == 0
    assert len(listed) == 2 * (1 + 2)
    assert len(find(Path("runs"))) == 4


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_fault_of_the_disk_changes_no_identity(monkeypatch, capsys, number):
    images("one", 0)
    config = on("one")
    before = folder_of(config)
    [last] = sorted(Path("one/val/b").iterdir())[-1:]

    def contents(path):
        if path == last:
            raise OSError(number, os.strerror(number))
        return image_file.contents(path)

    with monkeypatch.context() as patch:
        patch.setattr("pgt.data.tree.contents", contents)
        assert main(["train", *FILES, "data.root=one"]) == 2
    assert capsys.readouterr().err == f"pgt: {last}: {os.strerror(number)}\n"
    assert not Path("runs").exists()
    assert folder_of(config) == before


def test_a_bad_file_has_an_identity():
    """Training says what is wrong with it, or leaves it out."""
    images("one", 0)
    before = folder_of(on("one"))
    last = Path("one/val/b/3.png")
    last.unlink()
    last.symlink_to("nowhere")
    assert folder_of(on("one")) != before
