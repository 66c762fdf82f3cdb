"""Messages about mistyped keys and choices, with what may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence, Set
from typing import Any

from pgt.config.resources import choices, groups, read_conf


def unknown(keys: Iterable[str], known: Set[str]) -> str:
    """Name unknown keys, each with the nearest known key or the choice of a group that has it."""
    return "; ".join(f"unknown key '{key}'{_hint(key, known)}" for key in keys)


def _hint(key: str, known: Set[str]) -> str:
    group, _, rest = key.partition(".")
    if owners := [name for name in choices(group) if rest in read_conf(f"{group}/{name}")]:
        return f": it goes with {group}={' or '.join(owners)}"
    alike = sorted(name for name in known | set(groups()) if ("." in name) == ("." in key))
    nearest = difflib.get_close_matches(key, alike, n=1)
    return f": did you mean '{nearest[0]}'?" if nearest else "; see `pgt train --cfg job` for the keys"


def unknown_choice(group: str, name: str) -> str:
    """Name a choice that a group does not have, with the nearest one or all of them."""
    options = choices(group)
    nearest = difflib.get_close_matches(name, options, n=1) if name != "null" else []
    folders = dict.fromkeys(option.rpartition("/")[0] or option for option in options)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"choose one of {', '.join(folders)}"
    return f"unknown {group} '{name}': {hint}"


def one_choice(group: str, names: Sequence[str]) -> str:
    """Refuse a list of choices of a group that takes one, with the choice that combines them, if there is one."""
    if not names:
        return f"{group}=[] chooses nothing, and {group} takes one choice: {', '.join(choices(group))}"
    combined = [name for name in choices(group) if set(name.split("_")) == {*names}]
    meant = f"did you mean {group}={combined[0]}?" if combined else f"take one of them: {group}={names[0]}"
    each = f" (a run for each: -m {group}={','.join(names)})" if len(names) > 1 else ""
    return f"{group}=[{','.join(names)}] is a list, and {group} takes one choice: {meant}{each}"


def paths(node: Any, prefix: str = "") -> set[str]:
    """Every key of a nested container, dotted: inner nodes and leaves."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found: set[str] = set()
    for key, value in pairs:
        found |= {f"{prefix}{key}"} | paths(value, f"{prefix}{key}.")
    return found
