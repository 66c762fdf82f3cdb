"""Unpack the official ImageNet-1K archives into <output>/train/<class>/ and <output>/val/<class>/.

  python scripts/prepare_imagenet.py --archives DIR --output DIR

DIR holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz as image-net.org gives
them. A class folder appears when all of its images are written, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import track

from pgt.core.errors import InputError, run_script
from pgt.core.files import writing
from pgt.core.machine import cpus
from pgt.core.words import some
from pgt.data.tree import COUNTS, describe, read_tree

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
GROUND_TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"

LONGEST_END = 1 << 16
"""More bytes than mark the end of an archive: zeros that fill up a record, which seldom has more than 10 KiB."""
SHOWN = 5
"""The number of names in a message."""


@dataclass(frozen=True)
class Class:
    """A class of a split.

    Attributes:
        images: their number; None if the devkit does not say.
        unpack: (the archive, an empty folder) -> None: writes the images into the folder.
    """

    images: int | None
    unpack: Callable[[tarfile.TarFile, Path], None]

    def is_whole(self, folder: Path) -> bool:
        """Whether a folder holds the class."""
        found = _images(folder)
        return found > 0 if self.images is None else found == self.images

    def describe(self, folder: Path) -> str:
        """How much of the class a folder holds."""
        return f"{_images(folder)} of {self.images or 'its'} images"


def prepare(archives: Path, output: Path, workers: int) -> str:
    """Unpack what is not there yet; returns what is there then.

    Raises:
        InputError: an archive that is missing, damaged or not what its name says; a disk that is too small.
    """
    missing = [name for name in (TRAIN, VAL, DEVKIT) if not (archives / name).is_file()]
    if missing:
        raise InputError(f"no {', '.join(missing)} in {archives}: download them from image-net.org")
    within = _archives_of_classes(archives / TRAIN)
    numbers, labels = _devkit(archives / DEVKIT)
    if differing := sorted(within.keys() ^ numbers.keys()):
        raise InputError(
            f"{archives / TRAIN} and {DEVKIT} have different classes ({some(differing, SHOWN)}): one of them is "
            "damaged, or of another task of ILSVRC2012; download it again"
        )
    train = {name: Class(numbers[name], partial(_unpack_class, member)) for name, member in within.items()}
    plan = {"train": train, "val": _classes_of_val(archives / VAL, archives / DEVKIT, labels)}
    left = {split: _left(output / split, classes) for split, classes in plan.items()}
    _check_space(archives, output, left, plan)
    for split, archive in (("train", archives / TRAIN), ("val", archives / VAL)):
        _unpack_all(archive, output / split, left[split], workers)
    counts = read_tree(output).counts()
    imagenet = COUNTS["imagenet"]
    whole = "complete" if counts == imagenet else f"not complete, it has {describe(imagenet)}"
    return f"{output}: {describe(counts)}. ImageNet-1K: {whole}. Next: pgt data verify {output}"


def _left(split: Path, classes: dict[str, Class]) -> dict[str, Class]:
    """The classes that are still to be unpacked.

    Raises:
        InputError: the folder of a class holds another number of images.
    """
    begun = {name for name in classes if (split / name).is_dir() and any((split / name).iterdir())}
    odd = [name for name in sorted(begun) if not classes[name].is_whole(split / name)]
    if odd:
        found = [f"{name} ({classes[name].describe(split / name)})" for name in odd]
        raise InputError(
            f"{split} has class folders with another number of images than they should have: {some(found, SHOWN)}; "
            "remove them, and the same command writes them again"
        )
    return {name: wanted for name, wanted in classes.items() if name not in begun}


def _images(folder: Path) -> int:
    """The number of images in a folder."""
    return sum(1 for _ in folder.glob("[!.]*.JPEG"))


def _archives_of_classes(path: Path) -> dict[str, tarfile.TarInfo]:
    """The archive of each class within the archive."""
    classes: dict[str, tarfile.TarInfo] = {}
    for member in _members(path):
        name = re.fullmatch(r"(n\d{8})\.tar", Path(member.name).name)
        if name is None or not member.isfile():
            raise InputError(f"{path} holds {member.name}: expected archives of classes, as n01440764.tar")
        classes[name[1]] = member
    return classes


def _classes_of_val(path: Path, devkit: Path, labels: list[str]) -> dict[str, Class]:
    """Each class with the images that the devkit assigns to it."""
    members = [member for member in _members(path) if member.isfile()]
    if len(members) != len(labels):
        raise InputError(f"{path} holds {len(members):,} files, {devkit} has labels for {len(labels):,}")
    by_class: dict[str, list[tarfile.TarInfo]] = defaultdict(list)
    for member in members:
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", Path(member.name).name)
        if number is None or not 1 <= int(number[1]) <= len(labels):
            raise InputError(f"{path} holds {member.name}: expected images as ILSVRC2012_val_00000001.JPEG")
        by_class[labels[int(number[1]) - 1]].append(member)
    return {name: Class(len(found), partial(_unpack_images, found)) for name, found in by_class.items()}


def _devkit(devkit: Path) -> tuple[dict[str, int | None], list[str]]:
    """Each class with its number of training images, and the classes of the validation images, in order."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        with tarfile.open(devkit) as archive:
            texts = {Path(*Path(member.name).parts[1:]).as_posix(): archive.extractfile(member).read()
                     for member in archive if member.name.endswith((GROUND_TRUTH, META))}  # fmt: skip
        synsets = loadmat(BytesIO(texts[META]), squeeze_me=True)["synsets"]
        leaves = [s for s in synsets if int(s["num_children"]) == 0]
        names = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in leaves}
        if odd := [name for name in names.values() if not re.fullmatch(r"n\d{8}", name)]:
            raise ValueError(f"a class named {odd[0]!r}")
        counted = "num_train_images" in synsets.dtype.names
        numbers = {str(s["WNID"]): int(s["num_train_images"]) or None if counted else None for s in leaves}
        return numbers, [names[int(line)] for line in texts[GROUND_TRUTH].split()]
    except (KeyError, ValueError, AttributeError, tarfile.TarError, EOFError, zlib.error, MatReadError) as error:
        raise InputError(
            f"{devkit} is damaged or not the ILSVRC2012 devkit ({str(error).splitlines()[0]}): download it again"
        ) from None


def _members(path: Path) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            if not _ends(archive):
                raise tarfile.ReadError(f"it breaks off after {members[-1].name}" if members else "it holds no files")
            return members
    except tarfile.TarError as error:
        raise _damaged(path, error) from None


def _ends(archive: tarfile.TarFile) -> bool:
    """Whether the mark of the end, and nothing else, follows what was read: a hole of zeros looks like that mark."""
    archive.fileobj.seek(archive.offset)
    rest = archive.fileobj.read(LONGEST_END)
    return tarfile.BLOCKSIZE <= len(rest) < LONGEST_END and not any(rest)


def _damaged(path: Path, error: Exception, name: str = "") -> InputError:
    where = f" at class {name}" if name else ""
    reason = str(error).splitlines()[0]
    return InputError(f"{path} is damaged{where} ({reason}): download it again; what is unpacked stays")


def _check_space(archives: Path, output: Path, left: dict[str, dict], plan: dict[str, dict]) -> None:
    """Raises InputError if the disk is too small for what is left."""
    output.mkdir(parents=True, exist_ok=True)
    sizes = {"train": (archives / TRAIN).stat().st_size, "val": (archives / VAL).stat().st_size}
    need = sum(sizes[split] * len(left[split]) / max(len(plan[split]), 1) for split in plan)
    free = shutil.disk_usage(output).free
    if need > free:
        raise InputError(f"{output} has {free / 1e9:.0f} GB free, {need / 1e9:.0f} GB are needed")


def _unpack_all(archive: Path, split: Path, left: dict[str, Class], workers: int) -> None:
    """Write the class folders that are left, several at a time."""
    split.mkdir(exist_ok=True)
    console = Console(stderr=True)
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(partial(_unpack_one, archive, split), left.items())
        for _ in track(done, split.name, len(left), console=console, disable=not console.is_terminal):
            pass


def _unpack_one(archive: Path, split: Path, item: tuple[str, Class]) -> None:
    """One class, into a hidden folder that gets its name when it is whole."""
    name, wanted = item
    partial_folder = split / f".{name}.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir()
    try:
        with tarfile.open(archive) as opened:
            wanted.unpack(opened, partial_folder)
        if not wanted.is_whole(partial_folder):
            raise tarfile.ReadError(wanted.describe(partial_folder))
    except (tarfile.TarError, EOFError, FileExistsError) as error:
        shutil.rmtree(partial_folder)
        raise _damaged(archive, error, name) from None
    partial_folder.rename(split / name)


def _unpack_class(member: tarfile.TarInfo, archive: tarfile.TarFile, folder: Path) -> None:
    with tarfile.open(fileobj=archive.extractfile(member)) as inner:
        _unpack_images((image for image in inner if image.isfile()), inner, folder)
        if not _ends(inner):
            raise tarfile.ReadError(f"{member.name} ends without the mark of its end")


def _unpack_images(members: Iterable[tarfile.TarInfo], archive: tarfile.TarFile, folder: Path) -> None:
    for member in members:
        path = folder / Path(member.name).name
        with writing(path), path.open("xb") as file:
            _copy(archive.extractfile(member), file, member)


def _copy(source: IO[bytes], file: IO[bytes], member: tarfile.TarInfo) -> None:
    shutil.copyfileobj(source, file)
    if file.tell() != member.size:
        raise tarfile.ReadError(f"{member.name} ends after {file.tell()} of {member.size} bytes")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", type=Path, required=True, help="folder of the three archives")
    parser.add_argument("--output", type=Path, required=True, help="folder that train/ and val/ come into")
    parser.add_argument("--workers", type=int, default=cpus(), help="classes at a time (default: one a CPU)")
    options = parser.parse_args(arguments)
    work = partial(prepare, options.archives, options.output, max(1, options.workers))
    return run_script("prepare_imagenet", work, "goes on")


if __name__ == "__main__":
    sys.exit(main())
