"""Unpack the official ImageNet-1K archives into <output>/train/<class>/ and <output>/val/<class>/.

  python scripts/prepare_imagenet.py --archives DIR --output DIR

DIR holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz as image-net.org gives
them. A class folder appears when all of it is written, so the same command goes on after an interruption.
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
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import track

from pgt.core.errors import InputError, as_input_error
from pgt.core.machine import cpus
from pgt.data.tree import COUNTS, describe, read_tree

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
GROUND_TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"

Unpack = Callable[[tarfile.TarFile, Path], None]
"""(the archive, an empty folder) -> None: writes one class into the folder."""


def prepare(archives: Path, output: Path, workers: int) -> str:
    """Unpack what is not there yet; returns what is there then.

    Raises:
        InputError: an archive that is missing, damaged or not what its name says; a disk that is too small.
    """
    missing = [name for name in (TRAIN, VAL, DEVKIT) if not (archives / name).is_file()]
    if missing:
        raise InputError(f"no {', '.join(missing)} in {archives}: download them from image-net.org")
    plan = {"train": _classes_of_train(archives / TRAIN), "val": _classes_of_val(archives / VAL, archives / DEVKIT)}
    left = {split: {name: unpack for name, unpack in classes.items() if not (output / split / name).is_dir()}
            for split, classes in plan.items()}  # fmt: skip
    _check_space(archives, output, left, plan)
    for split, archive in (("train", archives / TRAIN), ("val", archives / VAL)):
        _unpack_all(archive, output / split, left[split], workers)
    counts = read_tree(output).counts()
    imagenet = COUNTS["imagenet"]
    whole = "complete" if counts == imagenet else f"not complete, it has {describe(imagenet)}"
    return f"{output}: {describe(counts)}. ImageNet-1K: {whole}. Next: pgt data verify {output}"


def _classes_of_train(path: Path) -> dict[str, Unpack]:
    """How to unpack each class: its archive within the archive."""
    classes: dict[str, Unpack] = {}
    for member in _members(path):
        name = re.fullmatch(r"(n\d{8})\.tar", Path(member.name).name)
        if name is None or not member.isfile():
            raise InputError(f"{path} holds {member.name}: expected archives of classes, as n01440764.tar")
        classes[name[1]] = partial(_unpack_class, member)
    return classes


def _classes_of_val(path: Path, devkit: Path) -> dict[str, Unpack]:
    """How to unpack each class: the images that the devkit assigns to it."""
    classes = _validation_classes(devkit)
    members = [member for member in _members(path) if member.isfile()]
    if len(members) != len(classes):
        raise InputError(f"{path} holds {len(members):,} files, {devkit} has labels for {len(classes):,}")
    by_class: dict[str, list[tarfile.TarInfo]] = defaultdict(list)
    for member in members:
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", Path(member.name).name)
        if number is None or not 1 <= int(number[1]) <= len(classes):
            raise InputError(f"{path} holds {member.name}: expected images as ILSVRC2012_val_00000001.JPEG")
        by_class[classes[int(number[1]) - 1]].append(member)
    return {name: partial(_unpack_images, found) for name, found in by_class.items()}


def _validation_classes(devkit: Path) -> list[str]:
    """The class folder of each validation image, in the order of their numbers."""
    from scipy.io import loadmat

    try:
        with tarfile.open(devkit) as archive:
            texts = {Path(*Path(member.name).parts[1:]).as_posix(): archive.extractfile(member).read()
                     for member in archive if member.name.endswith((GROUND_TRUTH, META))}  # fmt: skip
        synsets = loadmat(BytesIO(texts[META]), squeeze_me=True)["synsets"]
        names = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
        if odd := [name for name in names.values() if not re.fullmatch(r"n\d{8}", name)]:
            raise ValueError(f"a class named {odd[0]!r}")
        return [names[int(line)] for line in texts[GROUND_TRUTH].split()]
    except (KeyError, ValueError, AttributeError, tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(
            f"{devkit} is damaged or not the ILSVRC2012 devkit ({str(error).splitlines()[0]}): download it again"
        ) from None


def _members(path: Path) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(path) as archive:
            return archive.getmembers()
    except tarfile.TarError as error:
        raise _damaged(path, error) from None


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


def _unpack_all(archive: Path, split: Path, left: dict[str, Unpack], workers: int) -> None:
    """Write the class folders that are left, several at a time."""
    split.mkdir(exist_ok=True)
    console = Console(stderr=True)
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(partial(_unpack_one, archive, split), left.items())
        for _ in track(done, split.name, len(left), console=console, disable=not console.is_terminal):
            pass


def _unpack_one(archive: Path, split: Path, item: tuple[str, Unpack]) -> None:
    """One class, into a hidden folder that gets its name when it is whole."""
    name, unpack = item
    partial_folder = split / f".{name}.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir()
    try:
        with tarfile.open(archive) as opened:
            unpack(opened, partial_folder)
    except (tarfile.TarError, EOFError, FileExistsError) as error:
        shutil.rmtree(partial_folder)
        raise _damaged(archive, error, name) from None
    partial_folder.rename(split / name)


def _unpack_class(member: tarfile.TarInfo, archive: tarfile.TarFile, folder: Path) -> None:
    with tarfile.open(fileobj=archive.extractfile(member)) as inner:
        _unpack_images((image for image in inner if image.isfile()), inner, folder)
        inner.fileobj.seek(inner.offset)
        if inner.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"{member.name} ends without the mark of its end")


def _unpack_images(members: Iterable[tarfile.TarInfo], archive: tarfile.TarFile, folder: Path) -> None:
    for member in members:
        with (folder / Path(member.name).name).open("xb") as file:
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
    try:
        print(prepare(options.archives, options.output, max(1, options.workers)))
    except (InputError, OSError) as error:
        print(f"prepare_imagenet: {as_input_error(error)}", file=sys.stderr)
        return InputError.exit_code
    except KeyboardInterrupt:
        print("prepare_imagenet: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
