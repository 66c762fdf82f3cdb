"""`pgt doctor`: checks of a machine, to be made before hours are spent on it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.text import Text
from torch import Tensor

from pgt import data
from pgt.core.errors import InputError
from pgt.core.files import write_text
from pgt.core.machine import commit, has_dali, rank_environment
from pgt.data.delivery import Delivery
from pgt.data.image_file import UNREADABLE, read, why
from pgt.data.tree import MANIFEST, check_counts, describe, read_tree
from pgt.runs import folder as runs
from pgt.runs.console import Screen
from pgt.tools import doctor_numerics
from pgt.tools.doctor_speed import loader_and_network
from pgt.tools.finding import BAD, NOTE, OK, Check, Finding, judged, made
from pgt.tools.jpegs import generate
from pgt.tools.probe import first_device

STYLES = {OK: "green", NOTE: "yellow", BAD: "bold red"}
PIXELS = 0.05
"""Highest allowed mean absolute difference of normalised pixels between two JPEG decoders."""
ROOM, SHARED = 10 * 2**30, 2**30
"""Bytes that should be free on the disk of the runs, and in shared memory."""
SAMPLE = 256
"""Number of files that are read to measure the speed of the disk."""


def command(root: Path | None, runs_root: Path, resume: bool = False, as_json: bool = False) -> int:
    """Make every check and print its findings. Returns the exit code: 2 if a finding is bad, else 0.

    Args:
        root: an image folder to check; None: `$IMAGENET`, if that is set.
        runs_root: folder for the runs.
        resume: kill a training and resume it, too.
        as_json: print one JSON object, when all is done, rather than a line a finding.

    Raises:
        InputError: this is one of several processes.
    """
    if rank_environment(os.environ) is not None:
        raise InputError("pgt doctor starts processes of its own: run it once a machine, not by torchrun or srun -n")
    screen, started = Screen(), time.monotonic()
    told: list[tuple[str, Finding]] = []
    for name, check in checks(root, runs_root, resume).items():
        with nullcontext() if as_json else screen.status(f"checking {name}"):
            known = {finding for _, finding in told}  # one cause may fail many checks
            findings = [finding for finding in made(check) if finding not in known]
        told += [(name, finding) for finding in findings]
        if not as_json:
            for finding in findings:
                screen.print(Text.assemble((f"{finding.level:5}", STYLES[finding.level]), f"{name:9} {finding.text}"))
    bad = sum(finding.level == BAD for _, finding in told)
    seconds = round(time.monotonic() - started)
    if as_json:
        lines = [{"check": name, **asdict(finding)} for name, finding in told]
        print(json.dumps({"commit": commit(), "seconds": seconds, "bad": bad, "findings": lines}, indent=2))
    else:
        result = f"{bad} of {len(told)} findings are bad" if bad else "no problem found"
        screen.print(f"{result} ({seconds} s)")
    return InputError.exit_code if bad else 0


def checks(root: Path | None, runs_root: Path, resume: bool = False) -> dict[str, Check]:
    """Return the checks in order, by the name that is printed before their findings.

    Quick ones come first. Trainings come before this process uses a GPU, which may admit only one process at a time.
    """
    place = root or os.environ.get("IMAGENET")
    return {
        "torch": doctor_numerics.torch_and_gpus,
        "data": partial(files, root),
        "memory": memory,
        "runs": partial(room, runs_root),
        "training": doctor_numerics.trainings,
        **({"resume": doctor_numerics.resuming} if resume else {}),
        "gradient": doctor_numerics.gradients,
        "compile": doctor_numerics.compilation,
        "images": images,
        **({"speed": partial(loader_and_network, Path(place))} if place and Path(place, "train").is_dir() else {}),
    }


def images() -> Iterator[Finding]:
    """Compare the pixels that DALI decodes with torchvision's on the CPU."""
    if not has_dali():
        mend = "pip install nvidia-dali-cuda130; older drivers: docs/gpus.md"
        yield Finding(NOTE, f"no NVIDIA DALI: torchvision decodes, which is slower ({mend})")
        return
    device = first_device()
    with TemporaryDirectory() as name:
        for split in ("train", "val"):
            generate(Path(name) / split, 8)
        expected = _batches(Path(name), "torchvision", "cpu", torch.device("cpu"), workers=2)
        for dali_device, workers in (("cpu", 8), ("gpu", 8)) if device.type == "cuda" else (("cpu", 2),):
            decoded = _batches(Path(name), "dali", dali_device, device, workers)
            apart = max(float((a - b).abs().mean()) for a, b in zip(decoded, expected, strict=True))
            yield judged(
                apart <= PIXELS,
                f"DALI on the {dali_device.upper()}: pixels differ by {apart:.3f} deviations from torchvision's "
                f"(at most {PIXELS})",
                "take data.dali_device=cpu, or data.backend=torchvision",
            )


def _batches(root: Path, backend: str, dali_device: str, device: torch.device, workers: int) -> list[Tensor]:
    """Return the batches of two epochs of an image folder of 8 training and 8 test images, on the CPU.

    Args:
        workers: as `data.workers`; with eight, DALI starts reader processes, as in training on a GPU.
    """
    dataset = data.open_set(
        name="imagefolder",
        root=root,
        image_size=224,
        interpolation="bilinear",
        backend=backend,
        dali_device=dali_device,
        workers=workers,
        on_bad_file="error",
        manifest=None,
    )
    train, test = dataset.loaders(Delivery(device, torch.float32, 8, 8, seed=0, drop_last=True))
    with closing(train), closing(test):
        return [batch.images.cpu() for epoch in (0, 1) for loader in (train, test) for batch in loader.epoch(epoch)]


def files(root: Path | None) -> Iterator[Finding]:
    """Check that the data set is there, and measure how fast its files are read."""
    place = root or os.environ.get("IMAGENET")
    if root is not None and not root.is_dir():
        raise InputError(f"no folder {root}: --data must hold train/<class>/ and val/<class>/")
    if not place:
        yield Finding(NOTE, "no data set was looked at: --data DIR names one, or the variable IMAGENET")
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
    speed = f"{len(chosen) / seconds:,.0f} files a second, {size / seconds / 1e6:,.0f} MB/s"
    yield Finding(OK, f"one process reads {speed} (slower if the files are not in the page cache)")


def memory() -> Iterator[Finding]:
    """Check the shared memory, through which data workers hand over their batches."""
    shared = Path("/dev/shm")  # nosec B108  # measured only
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        text = f"{free / 2**30:.1f} GiB free in {shared}"
        wanted = f"{text}: loaders may need more; start containers with --shm-size=8g"
        yield Finding(OK, text) if free >= SHARED else Finding(NOTE, wanted)


def room(runs_root: Path) -> Iterator[Finding]:
    """Check that runs can be written, renamed and locked in their folder, and that the disk has room."""
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
    text = f"{runs_root}: {free / 2**30:,.0f} GiB free, files are written, locks hold"
    unlocked = f"{runs_root}: a lock does not hold"
    yield judged(held, text if held else unlocked, "mount it with flock, or two processes may train one run")
    if free < ROOM:
        yield Finding(NOTE, "a run of ResNet-50 keeps 0.4 GB of checkpoints; `pgt plan` adds up a sweep's")
