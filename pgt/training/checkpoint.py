"""State of a run in one file, replaced atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pgt.core.errors import InputError
from pgt.core.files import atomic_write


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain types) so that `path` always holds a whole checkpoint."""
    with atomic_write(path) as file:
        torch.save(state, file)


def load(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Read a checkpoint, executing nothing that is in it.

    Raises:
        InputError: a file that is no checkpoint, or holds other than tensors and plain types.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load answers a damaged file with whatever it stumbles over
        raise damaged(path, error) from None
    return state


def damaged(path: Path, error: Exception) -> InputError:
    """What to say of a checkpoint that could not be used."""
    kind = type(error).__name__
    return InputError(f"cannot load the checkpoint {path} ({kind}): it is damaged; delete it to start over")
