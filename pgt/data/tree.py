"""What files a data set consists of. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pgt.errors import InputError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}

Files = list[tuple[Path, int]]
"""(file, label) in the order of the set."""


def read_tree(root: Path) -> tuple[Files, Files, list[str]]:
    """Training files, validation files and class names of `<root>/train` and `<root>/val`.

    Raises:
        InputError: a folder that is missing or empty, or splits whose classes differ.
    """
    check_root(root)
    train, classes = scan(root / "train")
    test, test_classes = scan(root / "val")
    if test_classes != classes:
        differing = sorted(set(classes) ^ set(test_classes))
        raise InputError(f"train and val under {root} have different classes: {', '.join(differing[:5])}")
    return train, test, classes


def check_root(root: Path) -> None:
    """Raise an InputError unless there are `<root>/train` and `<root>/val`."""
    for split in (root / "train", root / "val"):
        if not split.is_dir():
            raise InputError(f"no folder {split}: data.root must hold train/<class>/ and val/<class>/")


def scan(split: Path) -> tuple[Files, list[str]]:
    """The (file, label) pairs of a split in order, and its class names: sorted folder names.

    Raises:
        InputError: no image in it.
    """
    classes = sorted(entry.name for entry in split.iterdir() if entry.is_dir())
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((split / name).iterdir())
        if file.suffix.lower() in EXTENSIONS
    ]
    if not files:
        raise InputError(f"no images under {split}: expected {split}/<class>/*.jpg, .png, ...")
    return files, classes


def file_digest(files: Files) -> str:
    """A short hash of the file list: class folder, name and label in order."""
    sha = hashlib.sha256()
    for file, label in files:
        sha.update(f"{file.parent.name}/{file.name}\t{label}\n".encode())
    return sha.hexdigest()[:16]
