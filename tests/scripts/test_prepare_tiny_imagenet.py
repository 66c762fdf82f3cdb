"""scripts/prepare_tiny_imagenet.py, on an archive like the official one with a few images."""

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from pgt import data
from pgt.core.errors import InputError
from pgt.data.tree import read_tree
from tests.conftest import ROOT, SECONDS
from tests.data.helpers import FOLDER

FILES = {
    "wnids.txt": "n02124075\nn01443537\n",
    "words.txt": "n01443537\tgoldfish\n",
    **{
        f"train/{wnid}/images/{wnid}_{i}.JPEG": f"{wnid} {i}"
        for wnid, count in (("n01443537", 3), ("n02124075", 2))
        for i in range(count)
    },
    **{f"train/{wnid}/{wnid}_boxes.txt": "" for wnid in ("n01443537", "n02124075")},
    **{f"val/images/val_{i}.JPEG": f"val {i}" for i in range(3)},
    "val/val_annotations.txt": "".join(
        f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in enumerate(("n02124075", "n01443537", "n02124075"))
    ),
    "test/images/test_0.JPEG": "test 0",
}
ARRANGED = {
    **{f"train/n01443537/n01443537_{i}.JPEG": f"n01443537 {i}" for i in range(3)},
    **{f"train/n02124075/n02124075_{i}.JPEG": f"n02124075 {i}" for i in range(2)},
    "val/n02124075/val_0.JPEG": "val 0",
    "val/n01443537/val_1.JPEG": "val 1",
    "val/n02124075/val_2.JPEG": "val 2",
}


def official(path, files=FILES):
    """A ZIP file, or a folder."""
    if path.suffix == ".zip":
        with ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(f"tiny-imagenet-200/{name}", text)
        return path
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def prepare(source, output="arranged"):
    command = [sys.executable, str(ROOT / "scripts" / "prepare_tiny_imagenet.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, "--source", str(source), "--output", str(output)],
                          capture_output=True, text=True, timeout=SECONDS, env=environment)  # fmt: skip


@pytest.mark.parametrize("name", ["tiny-imagenet-200.zip", "tiny-imagenet-200"])
def test_the_official_layout_becomes_class_folders(tmp_path, name):
    source, output = official(tmp_path / name), tmp_path / "arranged"
    done = prepare(source)
    assert (done.returncode, done.stderr) == (0, "")
    tree = read_tree(output)
    assert f"2 classes, 5 training and 3 validation images, file list {tree.digest()}" in done.stdout
    assert {str(path.relative_to(output)): path.read_text() for path in output.rglob("*.JPEG")} == ARRANGED
    assert sorted(os.listdir(output)) == ["train", "val"]
    done = prepare(source)
    assert done.returncode == 2
    assert "arranged/train is there already: remove it, or name another --output" in done.stderr


def test_what_is_damaged_or_not_whole_is_said(tmp_path):
    whole = official(tmp_path / "whole.zip")
    Path("cut.zip").write_bytes(whole.read_bytes()[:-100])
    Path("holed.zip").write_bytes(whole.read_bytes().replace(b"n01443537 1", bytes(11)))
    without = {
        "is not the official": ["val/val_annotations.txt"],
        r"different classes (train/n02124075)": [name for name in FILES if name.startswith("train/n02124075/")],
        r"names images that are not there (val_2.JPEG)": ["val/images/val_2.JPEG"],
    }
    said = {"cut.zip": "is damaged, or no ZIP file", "holed.zip": "is damaged, or no ZIP file", "none": "No such file"}
    for i, (text, names) in enumerate(without.items()):
        official(Path(f"{i}.zip"), {name: text for name, text in FILES.items() if name not in names})
        said[f"{i}.zip"] = text
    for name, text in said.items():
        done = prepare(name)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert text in done.stderr
        assert not Path("arranged", "train").exists()


def test_the_official_layout_is_refused_with_the_name_of_the_script(tmp_path):
    official(tmp_path)
    with pytest.raises(InputError, match=r"different classes: images, .*scripts/prepare_tiny_imagenet.py"):
        data.open_set(**{**FOLDER, "name": "tiny_imagenet", "backend": "torchvision"})
