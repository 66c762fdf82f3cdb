"""The data sets by name: what they consist of, and each as a training and a test `Loader`.

Nothing here imports torch before loaders are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgt.core.errors import InputError
from pgt.core.machine import has_dali
from pgt.core.registry import DATA_SETS
from pgt.data.tree import Tree, check_counts, check_manifest, check_root, read_tree

if TYPE_CHECKING:
    from pgt.core.types import Loader
    from pgt.data.delivery import Delivery

FOLDERS = tuple(name for name, known in DATA_SETS.items() if known.in_folders)
CIFAR = ("cifar10", "cifar100")
BACKENDS = ("dali", "torchvision")


@dataclass(frozen=True)
class DataSet:
    """A data set that is there.

    Attributes:
        manifest: a short text that changes when the list of its samples does.
        loaders: its training and its test loader, delivered as a run wants them.
    """

    manifest: str
    loaders: Callable[[Delivery], tuple[Loader, Loader]]


def check(name: str, **options: Any) -> None:
    """Refuse at once what is plainly not there: no file is listed.

    Raises:
        InputError: a data set of folders without them, or a backend that is not installed.
    """
    if name in CIFAR and not Path(options["root"]).is_dir():
        raise InputError(f"no folder {options['root']}: data.root must hold the official archive")
    if name not in FOLDERS:
        return
    check_root(Path(options["root"]))
    if options["backend"] == "dali" and not has_dali():
        raise InputError(
            "data.backend=dali needs NVIDIA DALI: pip install nvidia-dali-cuda130 (or -cuda120 for older drivers), "
            "or take data.backend=torchvision"
        )


def open_set(name: str, **options: Any) -> DataSet:
    """A data set: no torch yet, and no image read.

    Args:
        name: `imagenet`, `tiny_imagenet`, `imagefolder`, `cifar10`, `cifar100`, `digits` or `synthetic`.
        options: the rest of its config, all of it but `drop_last`; and `interpolation` for the first three.

    Raises:
        InputError: no such set or backend; folders that are not there, are not what they are called, or are not what
            was verified.
    """
    if name in FOLDERS:
        if options["backend"] not in BACKENDS:
            raise InputError(f"no data.backend is called {options['backend']}: take one of {', '.join(BACKENDS)}")
        tree = read_tree(Path(options.pop("root")))
        check_counts(tree, name)
        digest, manifest = tree.digest(), options.pop("manifest")
        skip = options["on_bad_file"] == "skip"
        unreadable = check_manifest(tree, digest, Path(manifest) if manifest else None, allow_unreadable=skip)
        known = [tree.root / name for name in unreadable]
        return DataSet(digest, partial(folder_loaders, tree=tree, unreadable=known, **options))
    if name == "digits":
        return DataSet(f"scikit-learn {version('scikit-learn')}", _digits)
    if name == "synthetic":
        return DataSet(json.dumps(options, sort_keys=True), partial(_synthetic, **options))
    if name in CIFAR:
        return DataSet(name, partial(_cifar, name=name, **options))
    raise InputError(
        f"no data set is called {name}: take one of {', '.join((*FOLDERS, *CIFAR, 'digits', 'synthetic'))}"
    )


def folder_loaders(
    delivery: Delivery,
    tree: Tree,
    image_size: int,
    workers: int,
    interpolation: str,
    backend: str,
    dali_device: str,
    on_bad_file: str,
    unreadable: Iterable[Path] = (),
) -> tuple[Loader, Loader]:
    """Training: random resized crop (linear, not antialiased) and flip. Evaluation: resize by `interpolation`, centre
    crop."""
    from pgt.data.reader import Reader

    skip, broken = on_bad_file == "skip", list(unreadable)
    train_reader = Reader(tree.train, image_size, delivery.seed, skip, tree.train.indices(broken))
    test_reader = Reader(tree.test, image_size, None, broken=tree.test.indices(broken))
    train = train_reader, delivery.train_sampler(len(tree.train))
    test = test_reader, delivery.test_sampler(len(tree.test))
    common = {"delivery": delivery, "interpolation": interpolation, "workers": workers, "skip": skip}
    if backend == "torchvision":
        from pgt.data.folder import FolderLoader

        return FolderLoader(*train, **common), FolderLoader(*test, **common)
    on_gpu = delivery.device.type == "cuda" if dali_device == "auto" else dali_device == "gpu"
    if on_gpu and delivery.device.type != "cuda":
        raise InputError("data.dali_device=gpu needs a GPU: set data.dali_device=cpu or auto")
    try:
        from pgt.data.dali import DaliLoader
    except (ImportError, OSError) as error:
        raise InputError(f"NVIDIA DALI does not load ({error}): mend it, or take data.backend=torchvision") from None
    return DaliLoader(*train, **common, on_gpu=on_gpu), DaliLoader(*test, **common, on_gpu=on_gpu)


def _digits(delivery: Delivery) -> tuple[Loader, Loader]:
    from pgt.data import digits

    return digits.load(delivery)


def _synthetic(delivery: Delivery, **options: Any) -> tuple[Loader, Loader]:
    from pgt.data import synthetic

    return synthetic.load(delivery, **options)


def _cifar(delivery: Delivery, **options: Any) -> tuple[Loader, Loader]:
    from pgt.data import cifar

    return cifar.load(delivery, **options)
