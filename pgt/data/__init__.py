"""The data sets by name: each one checked, opened, and delivered by a training and a test `Loader`.

Importing this module does not import torch, and neither do `check` and `open_set`: a launcher calls them before it
trains, and the processes that read image files import this package. The modules that deliver batches are imported
when the loaders are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgt.core.errors import InputError
from pgt.core.machine import has_dali
from pgt.core.registry import DATA_SETS
from pgt.data.tree import check_counts, check_manifest, check_root, read_tree

if TYPE_CHECKING:
    from pgt.core.types import Loader
    from pgt.data.delivery import Delivery

BACKENDS = ("dali", "torchvision")


@dataclass(frozen=True)
class DataSet:
    """A data set that has been found and checked.

    Attributes:
        manifest: a short text that changes if the list of its samples changes.
        loaders: makes the training and the test loader for a `Delivery`.
        files: tells the files of a data set whose name stands for any files; they are part of a run's identity.
    """

    manifest: str
    loaders: Callable[[Delivery], tuple[Loader, Loader]]
    files: str | None = None


def check(name: str, **options: Any) -> None:
    """Refuse a data set that is plainly not there, without listing any files.

    Raises:
        InputError: a folder is missing, or the backend is not installed.
    """
    if OPENERS.get(name) is _open_cifar and not Path(options["root"]).is_dir():
        raise InputError(f"no folder {options['root']}: data.root must hold the official archive")
    if name not in FOLDERS:
        return
    check_root(Path(options["root"]))
    if options["backend"] == "dali" and not has_dali():
        raise InputError(
            "data.backend=dali needs NVIDIA DALI: pip install nvidia-dali-cuda130 (older drivers: docs/gpus.md), "
            "or take data.backend=torchvision"
        )


def open_set(name: str, **options: Any) -> DataSet:
    """Find and check a data set. Reads no image.

    Args:
        name: `imagenet`, `tiny_imagenet`, `imagefolder`, `cifar10`, `cifar100`, `digits` or `synthetic`.
        options: the other keys of its config except `drop_last`; the first three also take `interpolation`.

    Raises:
        InputError: the data set or the backend is unknown, a folder is missing or has other contents than its name
            says, or the files differ from those that were verified.
    """
    if name not in OPENERS:
        raise InputError(f"no data set is called {name}: take one of {', '.join(OPENERS)}")
    return OPENERS[name](name, **options)


def _open_folder(name: str, root: str, manifest: str | None, on_bad_file: str, backend: str, **options: Any) -> DataSet:
    if backend not in BACKENDS:
        raise InputError(f"no data.backend is called {backend}: take one of {', '.join(BACKENDS)}")
    tree = read_tree(Path(root))
    check_counts(tree, name)
    digest, skip = tree.digest(), on_bad_file == "skip"
    unreadable = check_manifest(tree, digest, Path(manifest) if manifest else None, allow_unreadable=skip)
    known = [tree.root / path for path in unreadable]
    loaders = partial(_load, module="images", tree=tree, unreadable=known, skip=skip, backend=backend, **options)
    return DataSet(digest, loaders, tree.fingerprint(digest) if DATA_SETS[name].any_files else None)


def _open_cifar(name: str, root: str) -> DataSet:
    return DataSet(name, partial(_load, module="cifar", name=name, root=root))


def _open_digits(name: str) -> DataSet:
    return DataSet("UCI digits, split 0", partial(_load, module="digits"))


def _open_synthetic(name: str, **options: Any) -> DataSet:
    return DataSet(json.dumps(options, sort_keys=True), partial(_load, module="synthetic", **options))


def _load(delivery: Delivery, module: str, **options: Any) -> tuple[Loader, Loader]:
    """Call `load` of a module of this package, which is imported only now."""
    loaders: tuple[Loader, Loader] = import_module(f"pgt.data.{module}").load(delivery, **options)
    return loaders


FOLDERS = tuple(name for name, known in DATA_SETS.items() if known.in_folders)
OPENERS: dict[str, Callable[..., DataSet]] = {
    **dict.fromkeys(FOLDERS, _open_folder),
    "cifar10": _open_cifar,
    "cifar100": _open_cifar,
    "digits": _open_digits,
    "synthetic": _open_synthetic,
}
"""The data sets by the name that a config's `data.name` gives, each with the function that opens it."""
