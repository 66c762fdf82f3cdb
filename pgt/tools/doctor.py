"""Checks of a machine before hours are spent on it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageFilter

from pgt import data
from pgt.core.errors import InputError
from pgt.core.files import write_text
from pgt.core.machine import has_dali, rank_environment
from pgt.data.image_file import UNREADABLE, read, why
from pgt.data.tree import MANIFEST, check_counts, describe, read_tree
from pgt.runs import folder as runs
from pgt.tools import doctor_numerics
from pgt.tools.finding import BAD, NOTE, OK, Check, Finding, judged, made

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

STYLES = {OK: "green", NOTE: "yellow", BAD: "bold red"}
PIXELS = 0.05
"""Mean absolute difference of normalised pixels between two JPEG decoders, at most."""
ROOM, SHARED = 10 * 2**30, 2**30
"""Bytes that should be free for runs, and in the memory that processes share."""
SAMPLE = 256
"""Files that are read to see how fast they come."""


def command(root: Path | None, runs_root: Path) -> int:
    """Make and print every check; returns the exit code: 2 where one is bad.

    Args:
        root: of an image folder to look at; None: `$IMAGENET`, where it is set.
        runs_root: where runs are to be written.

    Raises:
        InputError: started as one of several processes.
    """
    from rich.text import Text

    if rank_environment(os.environ) is not None:
        raise InputError("pgt doctor starts processes of its own: run it once a machine, not by torchrun or srun -n")
    console, told = _terminal(), []
    for name, check in checks(root, runs_root).items():
        with console.status(f"checking {name}"):
            findings = [finding for finding in made(check) if finding not in told]  # one cause may have many effects
        for finding in findings:
            line = Text.assemble((f"{finding.level:5}", STYLES[finding.level]), f"{name:9} {finding.text}")
            console.print(line, soft_wrap=True)
        told += findings
    bad = sum(finding.level == BAD for finding in told)
    console.print(f"{bad} of {len(told)} findings are bad" if bad else "nothing of this stands in the way of training")
    return InputError.exit_code if bad else 0


def _terminal() -> Console:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # as of `print`, for `pgt.cli` to end by

    return Terminal(highlight=False)


def checks(root: Path | None, runs_root: Path) -> dict[str, Check]:
    """What is checked, in order, by the name that it is printed with.

    What is quick comes first. Trainings come before this process takes hold of a GPU: it may admit one at a time.
    """
    return {
        "torch": doctor_numerics.torch_and_gpus,
        "data": partial(files, root),
        "memory": memory,
        "runs": partial(room, runs_root),
        "training": doctor_numerics.trainings,
        "gradient": doctor_numerics.gradients,
        "compile": doctor_numerics.compilation,
        "images": images,
    }


def images() -> Iterator[Finding]:
    """What DALI makes of JPEGs, beside torchvision on the CPU."""

    if not has_dali():
        mend = "pip install nvidia-dali-cuda130, or -cuda120 for older drivers"
        yield Finding(NOTE, f"no NVIDIA DALI: torchvision decodes, and slower ({mend})")
        return
    device = doctor_numerics.first_device()
    with TemporaryDirectory() as name:
        for split in ("train", "val"):
            generate(Path(name) / split, 8)
        expected = _batches(Path(name), "torchvision", "cpu", torch.device("cpu"))
        for way in ("cpu", "gpu") if device.type == "cuda" else ("cpu",):
            found = _batches(Path(name), "dali", way, device)
            apart = max(float((a - b).abs().mean()) for a, b in zip(found, expected, strict=True))
            yield judged(
                apart <= PIXELS,
                f"DALI decoding on the {way.upper()}: pixels differ by {apart:.3f} deviations (at most {PIXELS}) from "
                "torchvision's",
                "take data.dali_device=cpu, or data.backend=torchvision",
            )


def _batches(root: Path, backend: str, dali_device: str, device: torch.device) -> list[Tensor]:
    """The first training and the first test batch of a folder's images, on the CPU."""
    from pgt.data.delivery import Delivery

    dataset = data.open_set(
        name="imagefolder",
        root=root,
        image_size=64,
        interpolation="bilinear",
        backend=backend,
        dali_device=dali_device,
        workers=2,
        on_bad_file="error",
        manifest=None,
    )
    batches = []
    train, test = dataset.loaders(Delivery(device, torch.float32, 8, 8, seed=0, drop_last=True))
    with closing(train), closing(test):
        for loader in (train, test):
            batches += [batch.images.cpu() for batch in islice(loader.epoch(0), 1)]
    return batches


def files(root: Path | None) -> Iterator[Finding]:
    """The data set: whether it is there, and how fast it comes."""
    place = root or os.environ.get("IMAGENET")
    if root is not None and not root.is_dir():
        raise InputError(f"no folder {root}: --data must hold train/<class>/ and val/<class>/")
    if not place:
        yield Finding(NOTE, "IMAGENET is not set, and no --data given: no data set was looked at")
        return
    start = time.monotonic()
    tree = read_tree(Path(place))
    seconds = time.monotonic() - start
    if root is None:
        check_counts(tree, "imagenet")
    yield Finding(OK, f"{tree.root}: {describe(tree.counts())}, listed in {seconds:.1f} s")
    if not (tree.root / MANIFEST).is_file():
        yield Finding(NOTE, f"no {MANIFEST} there: `pgt data verify {tree.root}` decodes every image and writes it")
    chosen = range(0, len(tree.train), -(-len(tree.train) // SAMPLE))
    start = time.monotonic()
    try:
        size = sum(len(read(tree.train.path(index))[0]) for index in chosen)
    except UNREADABLE as error:
        yield Finding(NOTE, f"not every image can be read ({why(error)}): `pgt data verify {tree.root}` names them")
        return
    seconds = time.monotonic() - start
    speed = f"{len(chosen) / seconds:,.0f} a second, {size / seconds / 1e6:,.0f} MB/s"
    yield Finding(OK, f"{len(chosen)} training images read by one reader: {speed} (fewer, had they not been cached)")


def memory() -> Iterator[Finding]:
    """What the loaders' processes hand their batches over by."""
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        text = f"{free / 2**30:.1f} GiB free in {shared}"
        wanted = f"{text}: loaders may need more; start containers with --shm-size=8g"
        yield Finding(OK, text) if free >= SHARED else Finding(NOTE, wanted)


def room(runs_root: Path) -> Iterator[Finding]:
    """Whether runs can be written, moved into place and held."""
    here = next(p for p in (runs_root.absolute(), *runs_root.absolute().parents) if p.exists() or p.is_symlink())
    try:
        with TemporaryDirectory(dir=here, prefix=".pgt-doctor-") as name:
            write_text(Path(name) / "summary.json", "{}")
            with runs.lock(Path(name)):
                held = bool(runs.holder(Path(name)))
    except OSError as error:
        raise InputError(
            f"cannot write to {runs_root} ({error.strerror}): take another folder, for `pgt train` by paths.runs"
        ) from None
    free = shutil.disk_usage(here).free
    text = f"{runs_root}: can be written, {free / 2**30:,.0f} GiB free"
    yield judged(held, text, "but locks do not hold there; mount it with flock, or two processes train one run")
    if free < ROOM:
        yield Finding(NOTE, "a run of ResNet-50 keeps 0.4 GB of checkpoints; `pgt plan` adds up a sweep's")


def generate(folder: Path, count: int) -> None:
    """Write JPEGs of 500x375, about as large in bytes as ImageNet's, in two classes; the same ones each time."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"class{index % 2}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        blobs = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        grain = Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8))
        Image.blend(blobs, grain.filter(ImageFilter.GaussianBlur(0.6)), 0.4).save(path, quality=92)
