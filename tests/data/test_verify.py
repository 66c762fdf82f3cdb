"""`pgt data verify`, and how `pgt train` uses its manifest."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from pgt import data
from pgt.cli.main import main
from pgt.core.errors import InputError, Stopped
from pgt.core.machine import cpus
from pgt.core.words import counted
from pgt.data import tree as trees
from tests.conftest import ROOT, SECONDS, TINY, compose, last_wins, pgt, train, until
from tests.data.helpers import FOLDER
from tests.data.test_images import NO_FILE, WHOLE, no_files, tree
from tests.data.test_workers import left
from tests.training.test_stopping import Asked

RUN = last_wins(*TINY[:5], "data=imagefolder", "data.root=.", "data.image_size=32", "recipe.global_batch=4",
       "recipe.local_batch=4", "model=resnet20")  # fmt: skip


def test_verify_counts_and_train_compares(tmp_path):
    tree(tmp_path, {"a.jpg": WHOLE, "notes.txt": b"x"}, val=2)
    done = pgt("data", "verify", ".")
    assert (done.returncode, done.stderr) == (0, "")
    assert ".: 2 classes, 4 training and 4 validation images" in done.stdout
    assert "classes in order: cat, dog; the smallest has 1 training images" in done.stdout
    assert "ignored: 1 entries" in done.stdout
    assert "unreadable: 0" in done.stdout
    assert "ImageNet" not in done.stdout
    manifest = json.loads((tmp_path / "pgt-manifest.json").read_text())
    assert (manifest["classes"], manifest["train"], manifest["val"], manifest["unreadable"]) == (2, 4, 4, [])
    summary = train(*RUN)
    assert summary.manifest == manifest["digest"]
    [log] = tmp_path.glob("runs/**/log.txt")
    assert f" step, {counted(min(cpus(), 16), 'data worker')}  -> " in log.read_text()
    [environment] = tmp_path.glob("runs/**/environment.json")
    assert json.loads(environment.read_text())["manifest"] == manifest["digest"]
    (tmp_path / "train" / "cat" / "b.jpg").write_bytes(WHOLE)
    with pytest.raises(InputError, match=r"not those that were verified \(.*run `pgt data verify .` again"):
        train(*RUN, "seed=1")


def test_verify_names_what_is_broken_and_train_refuses_or_skips(tmp_path):
    tree(tmp_path, {"a.jpg": WHOLE, "cut.jpg": WHOLE[:-100], "empty.png": b""})
    done = pgt("data", "verify", ".", "--workers", "2")
    assert done.returncode == 2
    assert "train/cat/cut.jpg: image file is truncated" in done.stdout
    assert "train/cat/empty.png: not an image" in done.stdout
    assert done.stderr.startswith("pgt: 2 files under . cannot be read: mend or remove them")
    with pytest.raises(InputError, match=r"has 2 unreadable files: train/cat/cut.jpg, train/cat/empty.png; mend"):
        train(*RUN)
    assert not (tmp_path / "runs").exists()
    summary = train(*RUN, "data.on_bad_file=skip", "recipe.global_batch=6", "recipe.local_batch=6")
    assert (summary.status, summary.skipped_files) == ("finished", 2)
    [log] = tmp_path.glob("runs/**/log.txt")
    assert "warning: 2 unreadable files left out: " in log.read_text()
    [metrics] = tmp_path.glob("runs/**/metrics.jsonl")
    assert json.loads(metrics.read_text().splitlines()[-1])["skipped_files"] == 2


def test_verify_counts_in_folders_within_a_class_and_names_what_is_slow(tmp_path, capsys):
    tree(tmp_path, {})
    (tmp_path / "train" / "cat" / "more").mkdir()
    (tmp_path / "train" / "cat" / "more" / "cut.jpg").write_bytes(WHOLE[:-100])
    Image.new("1", (8000, 7000)).save(tmp_path / "train" / "cat" / "wide.png")
    assert main(["data", "verify", ".", "--workers", "1"]) == 2
    printed = capsys.readouterr().out
    assert "2 classes, 5 training and 2 validation images" in printed
    assert "ignored" not in printed
    assert "slow to decode: 1 images of more than 50,000,000 pixels: train/cat/wide.png" in printed
    assert "unreadable: 1\n  train/cat/more/cut.jpg: " in printed
    with pytest.raises(InputError, match=r"has 1 unreadable files: train/cat/more/cut.jpg; mend"):
        train(*RUN)


def test_verify_names_what_is_no_file(tmp_path):
    tree(tmp_path, {"a.jpg": WHOLE})
    no_files(tmp_path / "train" / "cat")
    done = pgt("data", "verify", ".", "--workers", "1")
    assert done.returncode == 2
    for name, reason in NO_FILE.items():
        assert f"train/cat/{name}: {reason}\n" in done.stdout
    assert "unreadable: 7\n" in done.stdout


IN_TROUBLE = """
import errno, os, sys
from pgt.cli.main import main
from pgt.data import image_file

original = image_file.contents
def contents(path):
    if path.name == "b.jpg":
        raise {error}
    return original(path)
image_file.contents = contents  # in the processes that decode, too: they import this file
if __name__ == "__main__":
    sys.exit(main(["data", "verify", ".", "--workers", "1"]))
"""


@pytest.mark.parametrize(
    ("error", "reason"),
    [("OSError(errno.EIO, os.strerror(errno.EIO))", "Input/output error"), ("MemoryError", "MemoryError")],
)
def test_a_disk_in_trouble_ends_it_and_makes_no_bad_file(tmp_path, error, reason):
    tree(tmp_path, {"a.jpg": WHOLE, "b.jpg": WHOLE})
    Path("in_trouble.py").write_text(IN_TROUBLE.replace("{error}", error))
    command, environment = [sys.executable, "in_trouble.py"], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"pgt: train/cat/b.jpg: {reason}\n"
    assert not (tmp_path / "pgt-manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "after"), [(signal.SIGTERM, 4), (signal.SIGKILL, 0)])
def test_its_processes_end_with_it(tmp_path, number, after):
    """While they decode, and while they start."""
    tree(tmp_path, {})
    Image.new("1", (8000, 7000)).save(tmp_path / "large.png")
    for i in range(1000):
        (tmp_path / "train" / "cat" / f"{i}.png").symlink_to("../../large.png")
    command = [sys.executable, "-m", "pgt", "data", "verify", ".", "--workers", "2"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as verifying:
        children = Path(f"/proc/{verifying.pid}/task/{verifying.pid}/children")
        until(lambda: len(children.read_text().split()) >= 3, verifying)  # with the tracker of resources
        pids = {int(pid) for pid in children.read_text().split()}
        time.sleep(after)
        verifying.send_signal(number)
    assert left(pids, seconds=30) == set()


def test_bad_files_of_any_name(tmp_path):
    """Named in one line, written down, left out."""
    names = [os.fsdecode(b"\xff\xfe.jpg"), "two\nlines.jpg"]
    tree(tmp_path, {"a.jpg": WHOLE, **dict.fromkeys(names, b"")})
    run = (*RUN, "data.on_bad_file=skip", "recipe.global_batch=6", "recipe.local_batch=6")
    assert train(*run).skipped_files == 2
    done = pgt("data", "verify", ".", env={"PYTHONIOENCODING": "utf-8:strict"})
    assert "  train/cat/two\\nlines.jpg: not an image\n  train/cat/\\udcff\\udcfe.jpg: not an image\n" in done.stdout
    assert done.returncode == 2
    assert json.loads((tmp_path / "pgt-manifest.json").read_text())["unreadable"] == sorted(
        f"train/cat/{name}" for name in names
    )
    with pytest.raises(InputError, match=r"2 unreadable files: train/cat/two\\nlines.jpg, train/cat/\\udcff"):
        train(*RUN, "seed=1")
    assert train(*run, "seed=1").skipped_files == 2


@pytest.mark.slow
def test_a_file_that_was_left_out_counts_once_however_the_root_is_written(tmp_path, monkeypatch):
    """The paths in a checkpoint are below the root."""
    tree(tmp_path / "images", {"a.jpg": WHOLE, "cut.jpg": WHOLE[:-100]})
    (tmp_path / "linked").symlink_to("images")
    run = (*RUN, "data.on_bad_file=skip", "data.workers=0", "recipe.epochs=2", "recipe.global_batch=5",
           "recipe.local_batch=5")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("pgt.training.run.Stop", lambda: Asked(2))
        with pytest.raises(Stopped, match="of epoch 1"):
            train(*run, "data.root=images")
    [path] = tmp_path.glob("runs/**/last.pt")
    state = torch.load(path, weights_only=True)
    assert state["skipped"] == ["train/cat/cut.jpg"]
    assert train(*run, "data.root=linked").skipped_files == 1


def test_wnids_are_compared_with_imagenet(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "n01440764").mkdir(parents=True)
        (tmp_path / split / "n01440764" / "a.jpg").write_bytes(WHOLE)
    done = pgt("data", "verify", ".", "--output", "elsewhere.json")
    assert "not all of ImageNet-1K, which has 1,000 classes, 1,281,167 training and 50,000" in done.stdout
    assert (tmp_path / "elsewhere.json").is_file()
    assert not (tmp_path / "pgt-manifest.json").exists()
    assert data.open_set(**{**FOLDER, "backend": "dali", "manifest": "elsewhere.json"}).manifest in done.stdout
    (tmp_path / "train" / "n01440764" / "b.jpg").write_bytes(WHOLE)
    with pytest.raises(InputError, match="not those that were verified"):
        data.open_set(**{**FOLDER, "backend": "dali", "manifest": "elsewhere.json"})
    with pytest.raises(InputError, match=r"no data.manifest nowhere.json: `pgt data verify --output` writes it"):
        data.open_set(**{**FOLDER, "backend": "dali", "manifest": "nowhere.json"})


@pytest.mark.parametrize("content", ["", "[]", "{}", "no json"])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    tree(tmp_path, {"a.jpg": WHOLE})
    (tmp_path / "pgt-manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"pgt-manifest.json is damaged: run `pgt data verify .` again"):
        data.open_set(**FOLDER, backend="dali")


def test_verify_refuses_what_is_no_tree(tmp_path, capsys):
    assert main(["data", "verify", "nowhere"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no folder nowhere/train: data.root must hold train/<class>/ and val/<class>/" in printed.err
    tree(tmp_path, {"a.jpg": WHOLE})
    assert main(["data", "verify", ".", "--output", "no/such/folder.json"]) == 2
    assert "name another place by --output" in capsys.readouterr().err


def test_data_imagenet_is_all_of_imagenet(tmp_path, monkeypatch):
    tree(tmp_path, {"a.jpg": WHOLE})
    monkeypatch.delenv("IMAGENET", raising=False)
    with pytest.raises(InputError, match=r"^data.root is missing: export IMAGENET=... or add data.root=..."):
        compose("data=imagenet")
    monkeypatch.setenv("IMAGENET", str(tmp_path))
    config = compose("data=imagenet", *[o for o in RUN if not o.startswith("data")])
    assert (config.data.name, config.data.root) == ("imagenet", str(tmp_path))
    with pytest.raises(InputError, match="is not imagenet: 2 classes, 4 training and 2 validation images, not 1,000"):
        train("data=imagenet")
    monkeypatch.setitem(trees.COUNTS, "imagenet", (2, 4, 2))
    summary = train("data=imagenet", "data.image_size=32", *[o for o in RUN if not o.startswith("data")])
    assert summary.identity["data"]["name"] == "imagenet"


def test_the_backend_is_what_is_there(tmp_path, monkeypatch):
    tree(tmp_path, {"a.jpg": WHOLE})
    monkeypatch.setattr("pgt.config.schema.has_dali", lambda: True)
    assert compose(*RUN).data.backend == "dali"
    monkeypatch.setattr("pgt.config.schema.has_dali", lambda: False)
    monkeypatch.setattr("pgt.data.has_dali", lambda: False)
    assert compose(*RUN).data.backend == "torchvision"
    with pytest.raises(InputError, match=r"data\.backend=dali needs NVIDIA DALI: pip install"):
        data.check(**FOLDER, backend="dali")
    data.check(**FOLDER, backend="torchvision")
