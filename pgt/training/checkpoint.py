"""Checkpoints: the state of a run in one file, replaced atomically."""

from __future__ import annotations

import io
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from pgt.core.errors import InputError, one_line
from pgt.core.files import atomic_write


def save(path: Path, state: dict[str, Any], before: Path | None = None) -> None:
    """Write `state` (tensors and plain types); a checkpoint is whole at any time.

    Args:
        before: the name that the checkpoint which was at `path` gets.

    Raises:
        InputError: the disk is full, or `state` holds what `load` would refuse. The checkpoints that were there are
            left as they are.
    """
    whole = io.BytesIO()
    torch.save(state, whole)  # into memory: if torch meets a full disk, its traceback hides the cause
    whole.seek(0)
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(whole)
    except UnpicklingError as error:  # such as an integer of many digits
        foreign = [one_line(error)]
    if foreign:
        raise InputError(
            f"{path} would hold {', '.join(sorted(foreign))}, which no run resumes from: let each state_dict of yours "
            "return tensors and Python's own numbers, texts, lists and dicts alone"
        )
    with atomic_write(path, before) as file:
        file.write(whole.getbuffer())


def load(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        InputError: the file is not a checkpoint, or holds other things than tensors and plain types.
        OSError: the system cannot read it, which does not say that it is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds of them for a damaged file
        raise damaged(path, error) from None
    return state


def damaged(path: Path, error: Exception) -> InputError:
    """Make the error for a checkpoint that cannot be used."""
    kind = type(error).__name__
    found = f"cannot load the checkpoint {path} ({kind}): it is damaged"
    return InputError(f"{found}; put it back, or add trainer.force=true to start over")
