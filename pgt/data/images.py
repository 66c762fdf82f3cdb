"""The loaders of an ImageNet-style folder, through DALI or torchvision."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pgt.core.errors import InputError
from pgt.core.types import Loader
from pgt.data.delivery import Delivery
from pgt.data.folder import FolderLoader
from pgt.data.reader import Reader
from pgt.data.tree import Tree
from pgt.data.workers import decoders


def load(
    delivery: Delivery,
    tree: Tree,
    image_size: int,
    workers: int | None,
    interpolation: str,
    backend: str,
    dali_device: str,
    skip: bool,
    unreadable: Iterable[Path] = (),
) -> tuple[Loader, Loader]:
    """Make the training and the test loader.

    A training image is a random resized crop (linear, not antialiased), flipped with probability 1/2; a test image is
    resized by `interpolation` and cropped at its centre.

    Args:
        delivery: where the batches go, and in which precision.
        tree: the files.
        image_size: side of a sample in pixels.
        workers: threads (DALI) or processes (torchvision) that decode, never more than one a CPU; None: one a CPU, at
            most 16.
        interpolation: `bilinear` or `bicubic`.
        backend: `dali` or `torchvision`.
        dali_device: where DALI decodes: `cpu`, `gpu`, or `auto` for the training device.
        skip: leave unreadable files out; otherwise the first one stops the run.
        unreadable: files that are known to be unreadable.

    Raises:
        InputError: DALI cannot be loaded, or is to decode on a GPU that is not there.
    """
    broken = list(unreadable)
    train_reader = Reader(tree.train, image_size, delivery.seed, skip, tree.train.indices(broken))
    test_reader = Reader(tree.test, image_size, None, broken=tree.test.indices(broken))
    count = decoders(workers, delivery.cpus)
    train = train_reader, delivery.train_sampler(len(tree.train)), delivery, interpolation, count, skip
    test = test_reader, delivery.test_sampler(len(tree.test)), delivery, interpolation, count, skip
    if backend == "torchvision":
        return FolderLoader(*train), FolderLoader(*test)
    on_gpu = delivery.device.type == "cuda" if dali_device == "auto" else dali_device == "gpu"
    if on_gpu and delivery.device.type != "cuda":
        raise InputError("data.dali_device=gpu needs a GPU: set data.dali_device=cpu or auto")
    try:
        from pgt.data.dali import DaliLoader  # DALI is optional, and may fit neither the driver nor the machine
    except (ImportError, OSError) as error:
        raise InputError(f"NVIDIA DALI does not load ({error}): mend it, or take data.backend=torchvision") from None
    return DaliLoader(*train, on_gpu), DaliLoader(*test, on_gpu)
