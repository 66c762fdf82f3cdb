"""Checkpoints: the state of a run in one file, replaced atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pgt.core.errors import InputError
from pgt.core.files import atomic_write


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain types); `path` holds a whole checkpoint at any time."""
    with atomic_write(path) as file:
        torch.save(state, file)


def load(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        InputError: the file is not a checkpoint, or holds other things than tensors and plain types.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises many kinds of them for a damaged file
        raise damaged(path, error) from None
    return state


def damaged(path: Path, error: Exception) -> InputError:
    """Make the error for a checkpoint that cannot be used."""
    kind = type(error).__name__
    return InputError(f"cannot load the checkpoint {path} ({kind}): it is damaged; delete it to start over")
