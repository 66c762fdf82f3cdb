"""The data sets by name: what they consist of, and each as a training and a test `Loader`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgt.data.tree import check_root, file_digest, read_tree

if TYPE_CHECKING:
    from pgt.data.delivery import Delivery
    from pgt.types import Loader


def check(name: str, root: str) -> None:
    """Refuse at once what is plainly not there. Imports no torch.

    Raises:
        InputError: a data set of folders without them.
    """
    if name == "imagefolder":
        check_root(Path(root))


def manifest(name: str, **options: Any) -> str:
    """A short text that changes when the list of samples of a data set does. Imports no torch.

    Raises:
        InputError: data that is not there.
    """
    if name == "imagefolder":
        train, test, _ = read_tree(Path(options["root"]))
        return file_digest(train + test)
    if name == "digits":
        from importlib.metadata import version

        return f"scikit-learn {version('scikit-learn')}"
    return json.dumps(options, sort_keys=True)


def load(name: str, delivery: Delivery, **options: Any) -> tuple[Loader, Loader]:
    """The training and the test loader of the data set `name`.

    Args:
        name: `digits`, `imagefolder` or `synthetic`.
        delivery: what the run wants.
        options: what that set's `load` takes.

    Raises:
        InputError: data that is not there or does not fit.
    """
    if name == "digits":
        from pgt.data import digits

        return digits.load(delivery)
    if name == "imagefolder":
        from pgt.data import folder

        return folder.load(delivery, **options)
    from pgt.data import synthetic

    return synthetic.load(delivery, **options)
