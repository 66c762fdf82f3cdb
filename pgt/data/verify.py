"""`pgt data verify`: decode every file of an image folder once, report and write down what was found."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from pgt.core.errors import InputError
from pgt.core.files import write_json
from pgt.core.machine import now
from pgt.core.signals import leave_only_with, uninterrupted
from pgt.core.words import printable, some
from pgt.data.image_file import UNREADABLE, decode, files_fault, why
from pgt.data.tree import COUNTS, MANIFEST, Files, Tree, check_root, describe, read_tree
from pgt.data.workers import lost

CHUNK = 64
"""The number of files that a process takes at a time."""
LARGE = 50_000_000
"""Pixels of an image that takes a CPU about a second, and 150 MB, to decode."""
SHOWN = 20
"""The number of unreadable files that the report names; the manifest names all."""


@dataclass(frozen=True)
class Verified:
    """The outcome of a verification.

    Attributes:
        tree: the files.
        digest: the hash of their list.
        unreadable: files that cannot be decoded, relative to the root, each with the reason.
        large: files of so many pixels that they take long and much memory to decode, relative to the root.
    """

    tree: Tree
    digest: str
    unreadable: dict[str, str]
    large: list[str]


def verify(root: Path, workers: int) -> Verified:
    """Decode every image of `<root>/train` and `<root>/val`.

    Args:
        workers: processes that decode.

    Raises:
        InputError: a folder is missing or empty, or the splits have different classes.
        OSError: a file could not be read, and the disk or the machine is to blame.
    """
    tree = read_tree(root)
    unreadable: dict[str, str] = {}
    large: list[str] = []
    try:
        for name, files in (("train", tree.train), ("val", tree.test)):
            for index, reason in _remarkable(files, workers, name):
                path = str(files.path(index).relative_to(root))
                if reason is None:
                    large.append(path)
                else:
                    unreadable[path] = reason
    except BrokenProcessPool:
        raise lost() from None
    return Verified(tree, tree.digest(), unreadable, large)


def _remarkable(files: Files, workers: int, title: str) -> Iterator[tuple[int, str | None]]:
    """Yield (index, reason) for each file that cannot be decoded, and (index, None) for each that is very large.

    Shows a progress bar on a terminal.
    """
    chunks = [range(start, min(start + CHUNK, len(files))) for start in range(0, len(files), CHUNK)]
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with (
        ProcessPoolExecutor(workers, get_context("spawn"), _remember, (files, os.getpid())) as pool,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(title, total=len(files))
        with uninterrupted():
            results = pool.map(_checked, chunks)
        for chunk, found in zip(chunks, results, strict=True):
            progress.advance(task, len(chunk))
            yield from found


_files: Files
"""The files of the split that this worker process decodes."""


def _remember(files: Files, owner: int) -> None:
    """Prepare a worker process of the process `owner`."""
    global _files
    _files = files
    leave_only_with(owner)


def _checked(indices: range) -> list[tuple[int, str | None]]:
    """Return what `_remarkable` yields for some of the files.

    Raises:
        OSError: a file could not be read, and the disk or the machine is to blame.
    """
    found: list[tuple[int, str | None]] = []
    for index in indices:
        try:
            if decode(_files.path(index)) > LARGE:
                found.append((index, None))
        except UNREADABLE as error:
            if not files_fault(error):
                raise OSError(getattr(error, "errno", None), why(error), str(_files.path(index))) from None
            found.append((index, why(error)))
    return found


def report(verified: Verified) -> str:
    """Format what was found."""
    tree = verified.tree
    classes, smallest = tree.train.classes, int(np.bincount(tree.train.labels).min())
    lines = [
        f"{tree.root}: {describe(tree.counts())}",
        f"classes in order: {some(classes, 3, last=True)}; the smallest has {smallest:,} training images",
        f"file list: {verified.digest}",
    ]
    if all(re.fullmatch(r"n\d{8}", name) for name in classes):
        known = [name for name, counts in COUNTS.items() if counts == tree.counts()]
        less = f"not all of ImageNet-1K, which has {describe(COUNTS['imagenet'])}"
        lines.append(f"{known[0]}: complete" if known else less)
    if ignored := tree.train.ignored + tree.test.ignored:
        lines.append(f"ignored: {ignored:,} entries of class folders that are hidden or not named as images")
    if verified.large:
        names = some(verified.large, SHOWN)
        lines.append(f"slow to decode: {len(verified.large):,} images of more than {LARGE:,} pixels: {names}")
    lines.append(f"unreadable: {len(verified.unreadable):,}")
    lines += [f"  {printable(path)}: {reason}" for path, reason in list(verified.unreadable.items())[:SHOWN]]
    if len(verified.unreadable) > SHOWN:
        lines.append(f"  and {len(verified.unreadable) - SHOWN:,} more")
    return "\n".join(lines)


def command(root: Path, workers: int, output: Path | None) -> None:
    """Verify, print and write; raises InputError if files are unreadable."""
    path = output or root / MANIFEST
    check_root(root)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: name another place by --output, and by data.manifest when you train")
    verified = verify(root, workers)
    print(report(verified))
    counts = dict(zip(("classes", "train", "val"), verified.tree.counts(), strict=True))
    found = {"digest": verified.digest, **counts, "unreadable": sorted(verified.unreadable), "time": now()}
    try:
        write_json(path, found)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): name another place by --output") from None
    print(f"written to {path}")
    if verified.unreadable:
        raise InputError(
            f"{len(verified.unreadable)} files under {root} cannot be read: mend or remove them and verify again, or "
            "train without them by data.on_bad_file=skip"
        )
