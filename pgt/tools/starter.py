"""`pgt init`: what a checkout has beside the package, copied into a folder of the user's own. Needs no torch."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from pgt.config.resources import PACKAGE
from pgt.core.errors import InputError

PLACES = {
    "README.md": "examples/starter",
    "experiment/*.yaml": "examples/starter",
    "launch/*.sbatch": ".",
    "launch/kubernetes-job.yaml": ".",
    "examples/*.py": ".",
    "scripts/prepare_imagenet.py": ".",
    "scripts/prepare_tiny_imagenet.py": ".",
}
"""The files, and the folder of a checkout that has them. By pyproject.toml, starter/ of the package has all of them."""


def command(folder: Path) -> None:
    """Copy a first experiment, the templates for clusters, the examples and the script for ImageNet into a folder.

    Raises:
        InputError: one of the files is there already; nothing has been written.
    """
    copies = {folder / name: source for name, source in files()}
    for target in copies:
        if target.exists() or target.is_symlink():
            raise InputError(f"{target} is there already, and stays as it is: name another folder")
    for target, source in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        print(f"written: {target}")
    run = f"pgt train -m experiment=mine seed=0,1,2 --config-dir {shlex.quote(str(folder))}"
    print(f"next: {run}; {folder / 'README.md'} says more")


def files() -> Iterator[tuple[str, Path]]:
    """Yield the name of each file in the new folder, and the file that it is a copy of."""
    installed = PACKAGE / "starter"
    for pattern, place in PLACES.items():
        root = installed if installed.is_dir() else PACKAGE.parent / place
        yield from ((str(path.relative_to(root)), path) for path in sorted(root.glob(pattern)))
