"""The files of an ImageNet-style data set, listed and compared with what was verified. Does not import torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgt.core.errors import InputError
from pgt.core.registry import DATA_SETS
from pgt.core.words import some
from pgt.data.image_file import contents, files_fault, why

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
MANIFEST = "pgt-manifest.json"
COUNTS = {
    name: (known.classes, *known.samples)
    for name, known in DATA_SETS.items()
    if known.in_folders and known.classes and known.samples
}
"""Classes, training and validation images of the data sets of folders that have a fixed number."""
SHOWN = 5
"""The number of names in a message."""
SAMPLED = 64
"""The number of files of a split that are read for a fingerprint."""


@dataclass(frozen=True)
class Files:
    """The image files of a split in order, by class and then by name. Takes about 30 bytes a file.

    Attributes:
        folder: the folder of the split.
        classes: C folder names, sorted; a file's label is the position of its folder among them.
        names: [N] paths of files below their class's folder, as bytes.
        labels: [N] int32.
        ignored: the number of entries that are hidden or neither named as images nor folders.
    """

    folder: Path
    classes: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Return the path of a file."""
        path: Path = self.folder / self.classes[self.labels[index]] / os.fsdecode(bytes(self.names[index]))
        return path

    def indices(self, paths: Iterable[Path]) -> set[int]:
        """Return the indices of the given files; files that are not in this split are ignored."""
        found: set[int] = set()
        labels = {name: label for label, name in enumerate(self.classes)}
        begins = np.searchsorted(self.labels, np.arange(1 + len(labels), dtype=self.labels.dtype))
        for path in paths:
            if path.is_relative_to(self.folder):
                name, *rest = path.relative_to(self.folder).parts
                if name in labels:
                    begin, end = begins[labels[name] : labels[name] + 2]
                    same = self.names[begin:end] == os.fsencode("/".join(rest))
                    found.update((begin + np.flatnonzero(same)).tolist())
        return found


@dataclass(frozen=True)
class Tree:
    """The files of `<root>/train` and `<root>/val`."""

    root: Path
    train: Files
    test: Files

    def digest(self) -> str:
        """Return a short hash of both file lists: class folder, name and label, in order."""
        sha = hashlib.sha256()
        for files in (self.train, self.test):
            for name, label in zip(files.names.tolist(), files.labels.tolist(), strict=True):
                sha.update(b"%s/%s\t%d\n" % (os.fsencode(files.classes[label]), name, label))
        return sha.hexdigest()[:16]

    def fingerprint(self, digest: str) -> str:
        """Return a short hash of the digest and of the contents of up to `SAMPLED` files of each split, spread evenly.

        An image folder may have millions. A change of other files goes unnoticed.

        Raises:
            OSError: a file could not be read, and the disk or the machine is to blame: the hash would be another one.
        """
        sha = hashlib.sha256(digest.encode())
        for files in (self.train, self.test):
            for index in np.linspace(0, len(files) - 1, min(len(files), SAMPLED)).astype(int):
                path = files.path(index)
                try:
                    sha.update(contents(path))
                except (OSError, ValueError) as error:
                    if not files_fault(error):
                        raise OSError(getattr(error, "errno", None), why(error), str(path)) from None
        return sha.hexdigest()[:16]

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of classes, training images and validation images."""
        return len(self.train.classes), len(self.train), len(self.test)


def read_tree(root: Path) -> Tree:
    """List the files of `<root>/train` and `<root>/val`.

    Raises:
        InputError: a folder is missing or empty, or the splits have different classes.
    """
    check_root(root)
    tree = Tree(root, scan(root / "train"), scan(root / "val"))
    if differing := sorted(set(tree.train.classes) ^ set(tree.test.classes)):
        tiny = "; scripts/prepare_tiny_imagenet.py arranges the official Tiny-ImageNet"
        mend = tiny if (root / "val" / "val_annotations.txt").exists() else ""
        raise InputError(f"train and val under {root} have different classes: {some(differing, SHOWN)}{mend}")
    return tree


def check_root(root: Path) -> None:
    """Raise an InputError unless there are `<root>/train` and `<root>/val`."""
    for split in (root / "train", root / "val"):
        if not split.is_dir():
            raise InputError(f"no folder {split}: data.root must hold train/<class>/ and val/<class>/")


def scan(split: Path) -> Files:
    """List the files of a split, those in folders within a class's folder, too.

    Hidden files and folders and files without an image's extension are ignored.

    Raises:
        InputError: the split or one of its class folders holds no image.
        OSError: a class folder cannot be listed, such as a link to nowhere: leaving it out would shift the labels.
    """
    with os.scandir(split) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        classes = sorted(entry.name for entry in shown if entry.is_dir() or not os.path.exists(entry))
    names: list[bytes] = []
    labels: list[int] = []
    empty, ignored = [], 0
    for label, name in enumerate(classes):
        found, others = _listed(split / name)
        if not found:
            empty.append(name)
        ignored += others
        names += found
        labels += [label] * len(found)
    if not names:
        raise InputError(f"no images under {split}: expected {split}/<class>/*.jpg, .png, ...")
    if empty:
        raise InputError(
            f"no images in {len(empty)} class folders of {split}: {some(empty, SHOWN)}; "
            "fill them, or remove them from train and val"
        )
    return Files(split, tuple(classes), np.array(names), np.array(labels, dtype=np.int32), ignored)


def _listed(folder: Path) -> tuple[list[bytes], int]:
    """Return the paths of the images below a class's folder, sorted, and the number of other entries.

    A file with an image's extension is not looked at, since that takes long on a network's disk. A folder that several
    links lead to is listed once.
    """
    images: list[bytes] = []
    others, waiting, seen = 0, [""], set()
    while waiting:
        place = folder / (within := waiting.pop())
        if (real := os.path.realpath(place)) in seen:
            continue
        seen.add(real)
        for name in sorted(os.listdir(place)):
            if name.startswith("."):
                others += 1
            elif name.lower().endswith(EXTENSIONS):
                images.append(os.fsencode(os.path.join(within, name)))
            elif os.path.isdir(os.path.join(place, name)):
                waiting.append(os.path.join(within, name))
            else:
                others += 1
    return sorted(images), others


def check_counts(tree: Tree, name: str) -> None:
    """Raise an InputError if the data set of that name has fixed counts, and the tree has others."""
    if name in COUNTS and tree.counts() != COUNTS[name]:
        raise InputError(
            f"{tree.root} is not {name}: {describe(tree.counts())}, not {describe(COUNTS[name])}; "
            "complete it (`pgt data verify` says more), or train on it as data=imagefolder"
        )


def describe(counts: tuple[int, int, int]) -> str:
    """Format the numbers of classes, training images and validation images."""
    return "{:,} classes, {:,} training and {:,} validation images".format(*counts)


def check_manifest(tree: Tree, digest: str, path: Path | None, allow_unreadable: bool) -> list[str]:
    """Compare a tree with the manifest of `pgt data verify`, if there is one.

    Args:
        digest: of the tree.
        path: the manifest; None: its default place in the root, where it may be missing.
        allow_unreadable: accept files that were found to be unreadable.

    Returns:
        The unreadable files that the manifest lists, relative to the root.

    Raises:
        InputError: the files differ from those that were verified, some are unreadable, or there is no file at `path`.
    """
    named, path = path is not None, path or tree.root / MANIFEST
    try:
        verified: dict[str, Any] = json.loads(path.read_text())
        known, unreadable = verified["digest"], list(verified["unreadable"])
    except FileNotFoundError:
        if named:
            raise InputError(f"no data.manifest {path}: `pgt data verify --output` writes it") from None
        return []
    except IsADirectoryError:
        raise InputError(f"data.manifest {path} is a folder: name the file that `pgt data verify` wrote") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: run `pgt data verify {tree.root}` again, or remove it") from None
    if known != digest:
        raise InputError(
            f"the files under {tree.root} are not those that were verified ({digest}, then {known}): "
            f"run `pgt data verify {tree.root}` again"
        )
    if unreadable and not allow_unreadable:
        raise InputError(
            f"{tree.root} has {len(unreadable)} unreadable files: {some(unreadable, SHOWN)}; mend or remove them and "
            f"run `pgt data verify {tree.root}` again, or leave them out by data.on_bad_file=skip"
        )
    return unreadable
