"""Imports functions and classes of the user's own, which a config names by `_target_`, and checks their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from pgt.core.errors import InputError, one_line

FOUND = "modules are looked for where Python does, in the current folder and beside the configs of --config-dir"


def located(key: str, target: str) -> Callable[..., Any]:
    """Import a function or class.

    Args:
        key: of the config, for error messages.
        target: its dotted name.

    Raises:
        InputError: it cannot be imported, or cannot be called.
    """
    try:
        found = resolve_name(target)
        if inspect.ismodule(found):  # a function or class may have the name of its module
            parent, _, name = target.rpartition(".")
            found = getattr(resolve_name(parent), name) if parent else found
    except Exception as error:  # whatever importing the module raises
        hint = f"; {FOUND}" if isinstance(error, ModuleNotFoundError) else ""
        raise InputError(f"{key} ({target}): {one_line(error)}{hint}") from None
    if not callable(found):
        raise InputError(f"{key} ({target}) must be a function or a class, not {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def check_arguments(key: str, target: str, places: Sequence[Any], given: Mapping[str, Any]) -> None:
    """Refuse arguments that a function or class does not take; it is not called.

    Args:
        key, target: as for `located`.
        places, given: positional and keyword arguments.

    Raises:
        InputError: as `located`, or it does not take them.
    """
    try:
        signature = inspect.signature(located(key, target))
    except ValueError:  # it is not written in Python
        return
    try:
        signature.bind(*places, **given)
    except TypeError as error:
        raise InputError(f"{key} ({target}): {error}; it takes {signature}") from None
