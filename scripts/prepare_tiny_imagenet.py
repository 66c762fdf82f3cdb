"""Arrange the official Tiny-ImageNet-200 as <output>/train/<class>/ and <output>/val/<class>/.

  python scripts/prepare_tiny_imagenet.py --source tiny-imagenet-200.zip --output DIR

The source is the official archive, or the folder that it unpacks to, and stays as it is. Its validation images lie in
one folder, and val/val_annotations.txt says their classes. Its test images have no labels and are left out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from rich.console import Console
from rich.progress import track

from pgt.core.errors import InputError, run_script
from pgt.core.files import writing
from pgt.core.words import some
from pgt.data.tree import COUNTS, describe, read_tree

TOP = "tiny-imagenet-200/"
CLASSES, ANNOTATIONS = "wnids.txt", "val/val_annotations.txt"
IMAGE = re.compile(r"(?:train/(?P<class>n\d{8})|val)/images/(?P<file>[^/]+\.JPEG)")
SHOWN = 5
"""The number of names in a message."""


def prepare(source: Path, output: Path) -> str:
    """Write what the source holds; returns what is there then.

    Raises:
        InputError: the source is damaged, incomplete or not Tiny-ImageNet; the output is there already; a full disk.
    """
    for split in ("train", "val"):
        if (output / split).exists():
            raise InputError(f"{output / split} is there already: remove it, or name another --output")
    partial = output / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    console = Console(stderr=True)
    with _opened(source) as (names, read):
        try:
            places = arranged(names, read(CLASSES).decode().split(), read(ANNOTATIONS).decode())
        except (KeyError, ValueError) as error:
            raise InputError(f"{source} is not the official Tiny-ImageNet, or not whole: {error.args[0]}") from None
        for name, place in track(places.items(), output.name, console=console, disable=not console.is_terminal):
            path = partial / place
            path.parent.mkdir(parents=True, exist_ok=True)
            content = read(name)
            with writing(path):
                path.write_bytes(content)
    for split in ("train", "val"):
        (partial / split).rename(output / split)
    partial.rmdir()
    tree, tiny = read_tree(output), COUNTS["tiny_imagenet"]
    whole = "complete" if tree.counts() == tiny else f"not complete, it has {describe(tiny)}"
    return (
        f"{output}: {describe(tree.counts())}, file list {tree.digest()}. Tiny-ImageNet-200: {whole}. "
        f"Next: pgt data verify {output}"
    )


def arranged(names: list[str], classes: list[str], annotations: str) -> dict[str, str]:
    """Where each image goes: `<split>/<class>/<file>` by its name in the source.

    Args:
        classes: their names, as in wnids.txt.
        annotations: the text of val_annotations.txt: lines of a file, its class, and a box.

    Raises:
        ValueError: a class lacks its images, or an image its class.
    """
    labels = dict(line.split("\t")[:2] for line in annotations.splitlines())
    places: dict[str, str] = {}
    for name in names:
        if image := IMAGE.fullmatch(name):
            split, label = ("train", image["class"]) if image["class"] else ("val", labels.get(image["file"], ""))
            places[name] = f"{split}/{label}/{image['file']}"
    found = {place.rpartition("/")[0] for place in places.values()}
    expected = {f"{split}/{label}" for split in ("train", "val") for label in classes}
    if differing := sorted(found ^ expected):
        raise ValueError(f"its images and {CLASSES} have different classes ({some(differing, SHOWN)})")
    if lacking := sorted(labels.keys() - {Path(name).name for name in names if name.startswith("val/")}):
        raise ValueError(f"{ANNOTATIONS} names images that are not there ({some(lacking, SHOWN)})")
    return places


@contextmanager
def _opened(source: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The names of the source's files, below the folder of the data set, and a function that reads one.

    Raises:
        InputError: the archive is damaged.
    """
    if source.is_dir():
        root = source / TOP if (source / TOP).is_dir() else source
        files = (path for folder in ("train", "val") for path in (root / folder).rglob("*"))
        yield [path.relative_to(root).as_posix() for path in files], lambda name: (root / name).read_bytes()
        return
    try:
        with ZipFile(source) as archive:
            names = [name.removeprefix(TOP) for name in archive.namelist()]
            top = TOP if any(name.startswith(TOP) for name in archive.namelist()) else ""
            yield names, lambda name: archive.read(top + name)
    except (BadZipFile, EOFError, zlib.error) as error:
        raise InputError(f"{source} is damaged, or no ZIP file ({error}): download it again") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", type=Path, required=True, help="tiny-imagenet-200.zip, or the folder unpacked from it"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder that train/ and val/ come into")
    options = parser.parse_args(arguments)
    return run_script("prepare_tiny_imagenet", lambda: prepare(options.source, options.output), "starts again")


if __name__ == "__main__":
    sys.exit(main())
