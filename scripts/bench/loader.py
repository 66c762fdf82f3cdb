"""Images a second of our loaders and of those that a user would pick instead, on the same files, in turns."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timm.data import ImageDataset, create_loader
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pgt.core.errors import InputError
from pgt.core.machine import cpus, has_dali
from pgt.data import images
from pgt.data.delivery import DEVIATION, MEAN, Delivery
from pgt.data.tree import Tree, scan
from pgt.tools.jpegs import generate
from pgt.tools.probe import first_device, wait_for
from scripts.bench.results import Result, entry, in_turns, machine, options, show, table

SIZE = 224
REFERENCE = "torchvision, Pillow"
SETTLE = 1.0
"""Seconds in which a loader finishes reading ahead, before the next one is timed."""
AHEAD, TIMED, EPOCH = 2, 4, 20
"""Batches a worker: those that torch's DataLoader prepares in advance; those that are timed, since workers that began
together finish together; and those of an epoch of generated images, at whose end a DataLoader's workers are idle."""
DISTINCT = 6
"""Batches of different images that are generated; an epoch has each of them several times."""

Epoch = Callable[[int], Iterator[Any]]
"""Epoch number -> its batches."""


@dataclass(frozen=True)
class Setting:
    """The setting that all loaders share.

    Attributes:
        root: folder of classes of JPEGs.
        batch, workers: of each loader.
    """

    root: Path
    batch: int
    workers: int

    @property
    def warm_up(self) -> int:
        """Batches of a round that are not timed, since they may have been prepared before it."""
        return max(4, AHEAD * self.workers)


def loaders(root: Path | None, batch: int, workers: int, batches: int, rounds: int, results: list[Result]) -> str:
    """Measure training loaders.

    Args:
        root: a folder of classes of images; None: JPEGs of 500x375 that are generated.
        batch, workers: of each loader.
        batches: timed in a round.
        rounds: each goes through all loaders once.
        results: takes the result of each loader.

    Returns:
        A Markdown table.

    Raises:
        InputError: fewer images than a batch.
    """
    with TemporaryDirectory() as folder:
        if root is None:
            root = Path(folder) / "train"
            generate(root, batch * DISTINCT)
            _repeat(root, -(-EPOCH * max(workers, 1) // DISTINCT))
        root = root / "train" if (root / "train").is_dir() else root
        return _measure(Setting(root, batch, workers), batches, rounds, results)


def _repeat(root: Path, times: int) -> None:
    """List each image so many times, by links."""
    for path in list(root.rglob("*.jpg")):
        for number in range(1, times):
            os.link(path, path.with_stem(f"{path.stem}-{number}"))


def _measure(setting: Setting, batches: int, rounds: int, results: list[Result]) -> str:
    streams = {name: _endless(build(setting)) for name, build in _contenders().items()}
    timed = in_turns(rounds, {name: partial(_timed, s, batches, setting) for name, s in streams.items()})
    speeds = {name: [speed for speed, _ in values] for name, values in timed.items()}
    costs = {name: [cost for _, cost in values] for name, values in timed.items()}
    slowest = statistics.median(speeds[REFERENCE])
    described = {"batch": setting.batch, "workers": setting.workers, "size": SIZE}
    rows, where = [], machine(torch.device("cpu"))
    if torch.cuda.is_available():
        where = f"{machine(first_device())}, {where}"
    for name, measured in speeds.items():
        middle, cost = statistics.median(measured), statistics.median(costs[name])
        results.append(entry("loader", described, name, where, images_per_second=middle, host_milliseconds=cost))
        spread = f"{min(measured):.0f}–{max(measured):.0f}"
        rows.append([name, f"{middle:.0f}", spread, f"{middle / slowest:.2f}", f"{cost:.1f}"])
    headers = ["training loader", "images/s", "range", f"× {REFERENCE}", "host ms a batch"]
    title = (
        f"{setting.workers} workers, batches of {setting.batch}, {rounds} rounds of {batches} batches in turns, "
        f"on {where}"
    )
    return f"{title}\n\n{table(rows, headers)}"


def _endless(epoch: Epoch) -> Iterator[Any]:
    index = 0
    while True:
        yield from epoch(index)
        index += 1


def _timed(stream: Iterator[Any], batches: int, setting: Setting) -> tuple[float, float]:
    """Return the images a second, and the CPU milliseconds of this thread a batch, in which it launches no kernels."""
    for _ in range(setting.warm_up):
        next(stream)
    wait_for(first_device())
    started, busy = time.perf_counter(), time.thread_time()
    for _ in range(batches):
        next(stream)
    cost = 1000 * (time.thread_time() - busy) / batches
    wait_for(first_device())
    seconds = time.perf_counter() - started
    time.sleep(SETTLE)
    return batches * setting.batch / seconds, cost


def _contenders() -> dict[str, Callable[[Setting], Epoch]]:
    """Return the loaders by name."""
    found: dict[str, Callable[[Setting], Epoch]] = {
        REFERENCE: _torchvision,
        "timm create_loader": _timm,
        "pgt, torchvision decode_jpeg": lambda setting: _pgt(setting, "torchvision", "auto"),
    }
    if has_dali():
        found["pgt, DALI on the CPU"] = lambda setting: _pgt(setting, "dali", "cpu")
        if torch.cuda.is_available():
            found["pgt, DALI on the GPU"] = lambda setting: _pgt(setting, "dali", "gpu")
    return found


def _pgt(setting: Setting, backend: str, dali_device: str) -> Epoch:
    files = scan(setting.root)
    if len(files) < setting.batch:
        raise InputError(f"{len(files)} images under {setting.root} are fewer than one batch of {setting.batch}")
    delivery = Delivery(first_device(), torch.float32, setting.batch, setting.batch, seed=0, drop_last=True)
    train, _ = images.load(
        delivery, Tree(setting.root, files, files), SIZE, setting.workers, "bilinear", backend, dali_device, skip=False
    )
    return train.epoch


def _torchvision(setting: Setting) -> Epoch:
    """Return the loader of torchvision's reference scripts with their default options."""
    steps = [
        transforms.RandomResizedCrop(SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, DEVIATION),
    ]
    images = DataLoader(
        ImageFolder(setting.root, transforms.Compose(steps)),
        setting.batch,
        shuffle=True,
        num_workers=setting.workers,
        drop_last=True,
        persistent_workers=setting.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    return lambda index: _on_device(images)


def _timm(setting: Setting) -> Epoch:
    """Return the loader of timm's train.py, with the recipe's augmentation."""
    images = create_loader(
        ImageDataset(str(setting.root)),
        input_size=(3, SIZE, SIZE),
        batch_size=setting.batch,
        is_training=True,
        use_prefetcher=torch.cuda.is_available(),
        color_jitter=None,
        interpolation="bilinear",
        num_workers=setting.workers,
    )
    return lambda index: _on_device(images)


def _on_device(images: Any) -> Iterator[Any]:
    for pixels, labels in images:
        yield (pixels.cuda(non_blocking=True), labels.cuda(non_blocking=True)) if torch.cuda.is_available() else pixels


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--root", type=Path, help="a folder of classes of images (default: generated, 500x375)")
    parser.add_argument("--workers", type=int, default=cpus(), help="of each loader (default: one a CPU)")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch (default: 64)")
    parser.add_argument("--batches", type=int, help="timed batches of a round (default: 12, or 4 a worker if more)")
    given, results = parser.parse_args(arguments), list[Result]()
    if given.root is not None and not given.root.is_dir():
        parser.error(f"no folder {given.root}: --root must hold <class>/*.jpg, or train/<class>/*.jpg")
    batches = given.batches or max(12, TIMED * given.workers)
    text = loaders(given.root, given.batch, given.workers, batches, given.rounds, results)
    show(text, results, given.json)


if __name__ == "__main__":
    main()
