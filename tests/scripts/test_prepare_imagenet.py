"""scripts/prepare_imagenet.py, on archives like the official ones with a few images each."""

import io
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from pgt.data.tree import read_tree
from tests.conftest import ROOT, SECONDS

WNIDS = ["n01440764", "n01443537", "n02101388"]
"""Their ILSVRC2012_IDs are 2, 1, 3, so not in the order of the folders."""
IDS = [2, 1, 3]
TRUTH = [1, 3, 2, 2, 1, 3, 3]


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for count, wnid in enumerate(WNIDS, start=2):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w") as inner:
                for i in range(count):
                    add(inner, f"{wnid}_{i}.JPEG", f"{wnid} {i}".encode())
            add(outer, f"{wnid}.tar", file.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for i in range(len(TRUTH), 0, -1):  # their order in the archive means nothing
            add(tar, f"ILSVRC2012_val_{i:08d}.JPEG", f"val {i}".encode())
    devkit(folder / "ILSVRC2012_devkit_t12.tar.gz", WNIDS)
    return folder


def devkit(path, wnids, images=(0, 0, 0)):
    rows = [(i, w, "words", "gloss", 0, [], 0, n) for i, w, n in zip(IDS, wnids, images, strict=True)]
    rows.append((4, "n00001740", "entity", "", 2, [1, 2], 0, 0))
    names = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    synsets = np.array(rows, dtype=[(name, object) for name in names])
    mat = io.BytesIO()
    savemat(mat, {"synsets": synsets})
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", mat.getvalue())
        truth = "\n".join(map(str, TRUTH)) + "\n"
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())


def prepare(archives, output, **options):
    command = [sys.executable, str(ROOT / "scripts" / "prepare_imagenet.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, "--archives", str(archives), "--output", str(output)],
                          capture_output=True, text=True, timeout=SECONDS, env=environment, **options)  # fmt: skip


def content(root):
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*.JPEG"))}


def test_archives_become_class_folders(archives, tmp_path):
    output = tmp_path / "imagenet"
    done = prepare(archives, output)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 classes, 9 training and 7 validation images. ImageNet-1K: not complete" in done.stdout
    files = content(output)
    assert read_tree(output).counts() == (3, 9, 7)
    assert files["train/n02101388/n02101388_3.JPEG"] == "n02101388 3"
    wnid = dict(zip(IDS, WNIDS, strict=True))
    for number, label in enumerate(TRUTH, start=1):
        assert files[f"val/{wnid[label]}/ILSVRC2012_val_{number:08d}.JPEG"] == f"val {number}"


def test_it_goes_on_where_it_was(archives, tmp_path):
    """A kill leaves whole classes, and hidden parts of others."""
    whole = tmp_path / "whole"
    prepare(archives, whole)
    output = tmp_path / "imagenet"
    (output / "train" / "n01440764").mkdir(parents=True)
    (output / "train" / "n01440764" / "kept.JPEG").write_text("not written again")
    (output / "train" / ".n01443537.partial").mkdir()
    (output / "train" / ".n01443537.partial" / "half.JPEG").write_text("half")
    assert prepare(archives, output).returncode == 0
    kept = {"train/n01440764/kept.JPEG": "not written again"}
    expected = {name: text for name, text in content(whole).items() if not name.startswith("train/n01440764")}
    assert content(output) == {**kept, **expected}
    assert not list(output.glob("*/.*"))


def test_a_cut_off_archive_leaves_whole_classes_only(archives, tmp_path):
    path = archives / "ILSVRC2012_img_train.tar"
    inner = path.read_bytes()
    start = inner.index(b"n02101388 2")
    path.write_bytes(inner[: start - 100])
    output = tmp_path / "imagenet"
    done = prepare(archives, output)
    assert done.returncode == 2
    assert "ILSVRC2012_img_train.tar is damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not [p for p in output.glob("train/n*") if len(list(p.iterdir())) < 2]
    assert not (output / "train" / "n02101388").exists()


def test_a_class_that_lacks_its_last_images_is_not_taken_for_whole(archives, tmp_path):
    """The archive of a class is cut off exactly after an image."""
    path = archives / "ILSVRC2012_img_train.tar"
    with tarfile.open(path) as outer:
        inner = {member.name: outer.extractfile(member).read() for member in outer}
    with tarfile.open(path, "w") as outer:
        for name, written in inner.items():
            add(outer, name, written[: 2 * 2 * tarfile.BLOCKSIZE] if "n02101388" in name else written)
    done = prepare(archives, tmp_path / "imagenet")
    assert done.returncode == 2
    assert "is damaged at class n02101388 (n02101388.tar ends without the mark of its end)" in done.stderr
    assert not (tmp_path / "imagenet" / "train" / "n02101388").exists()


HOLES = {
    "in a class": ("n02101388.tar", "data", 1024, 3072, r"damaged at class n02101388 "),
    "a whole class": ("n02101388.tar", "data", 0, 10240, r"damaged at class n02101388 \(0 of (4|its) images"),
    "between classes": ("n01443537.tar", "header", 0, 512, r"damaged \(it breaks off after n01440764.tar"),
}
"""Zeros where a download was not finished: the member, what of it, the bytes, and what is said."""


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("images", [(0, 0, 0), (2, 3, 4)], ids=["uncounted", "counted"])
def test_a_hole_leaves_no_class_that_lacks_images(archives, tmp_path, hole, images):
    """Zeros look like the end of an archive. With a whole archive the same command then writes the rest."""
    name, part, first, last, said = HOLES[hole]
    path, output = archives / "ILSVRC2012_img_train.tar", tmp_path / "imagenet"
    devkit(archives / "ILSVRC2012_devkit_t12.tar.gz", WNIDS, images)
    whole = path.read_bytes()
    with tarfile.open(path) as outer:
        member = outer.getmember(name)
    begin = member.offset if part == "header" else member.offset_data
    path.write_bytes(whole[: begin + first] + bytes(last - first) + whole[begin + last :])
    done = prepare(archives, output)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert re.search(f"img_train.tar is {said}", done.stderr)
    assert not (output / "train" / name.removesuffix(".tar")).exists()
    path.write_bytes(whole)
    assert prepare(archives, output).returncode == 0
    assert read_tree(output).counts() == (3, 9, 7)


def test_a_class_that_lacks_images_is_named_and_an_empty_one_written(archives, tmp_path):
    devkit(archives / "ILSVRC2012_devkit_t12.tar.gz", WNIDS, (2, 3, 4))
    output = tmp_path / "imagenet"
    (output / "train" / "n01440764").mkdir(parents=True)
    for split in ("train", "val"):
        (output / split / "n02101388").mkdir(parents=True)
        (output / split / "n02101388" / "0.JPEG").write_text("one")
    for split, number in (("train", 4), ("val", 3)):
        done = prepare(archives, output)
        assert done.returncode == 2
        assert f"{split} has class folders with another number of images" in done.stderr
        assert f": n02101388 (1 of {number} images); remove them, and the same command" in done.stderr
        shutil.rmtree(output / split / "n02101388")
    assert prepare(archives, output).returncode == 0
    assert read_tree(output).counts() == (3, 9, 7)


def test_archives_of_other_classes_than_the_devkits_are_refused(archives, tmp_path):
    devkit(archives / "ILSVRC2012_devkit_t12.tar.gz", [*WNIDS[:2], "n02102040"])
    done = prepare(archives, tmp_path / "imagenet")
    assert done.returncode == 2
    assert "have different classes (n02101388, n02102040): one of them is damaged, or of another task" in done.stderr
    assert not (tmp_path / "imagenet").exists()


def test_the_mark_of_an_end_may_cross_a_record(archives, tmp_path):
    """A class whose images end one block before a record of 10 KiB does."""
    path = archives / "ILSVRC2012_img_train.tar"
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as inner:
        add(inner, "n01440764_0.JPEG", bytes(tarfile.RECORDSIZE - 2 * tarfile.BLOCKSIZE))
    assert len(file.getvalue()) == 2 * tarfile.RECORDSIZE
    with tarfile.open(path) as outer:
        archived = {member.name: outer.extractfile(member).read() for member in outer}
    with tarfile.open(path, "w") as outer:
        for name, written in {**archived, "n01440764.tar": file.getvalue()}.items():
            add(outer, name, written)
    done = prepare(archives, tmp_path / "imagenet")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_named_with_the_mend(archives, tmp_path):
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5))  # noqa: E731
    done = prepare(archives, tmp_path / "imagenet", preexec_fn=small)
    assert done.returncode == 2
    assert re.search(r"n\d{8}_\d.JPEG: File too large: .*`ulimit -f unlimited`.*, then give the same", done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_what_is_missing_or_wrong_is_said(archives, tmp_path):
    (archives / "ILSVRC2012_img_val.tar").rename(archives / "elsewhere.tar")
    done = prepare(archives, tmp_path / "imagenet")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("prepare_imagenet: no ILSVRC2012_img_val.tar in")
    (archives / "elsewhere.tar").rename(archives / "ILSVRC2012_img_val.tar")
    (archives / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"x" * 100)
    done = prepare(archives, tmp_path / "imagenet")
    assert done.returncode == 2
    assert "devkit_t12.tar.gz is damaged or not the ILSVRC2012 devkit" in done.stderr
    with tarfile.open(archives / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", b"")
    done = prepare(archives, tmp_path / "imagenet")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "devkit_t12.tar.gz is damaged or not the ILSVRC2012 devkit (Mat file" in done.stderr
    devkit(archives / "ILSVRC2012_devkit_t12.tar.gz", ["n01440764", "n01443537", "/../../../escaped"])
    done = prepare(archives, tmp_path / "imagenet")
    assert done.returncode == 2
    assert "a class named '/../../../escaped'" in done.stderr
    with tarfile.open(archives / "ILSVRC2012_img_train.tar", "w") as tar:
        add(tar, "../../evil.txt", b"x")
    done = prepare(archives, tmp_path / "imagenet")
    assert done.returncode == 2
    assert "expected archives of classes" in done.stderr
