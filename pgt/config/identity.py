"""What names a run: the values of its config that change its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def identity(config: Any) -> dict[str, Any]:
    """The values of a config, or a part of it, that change the numbers of its run, as a nested plain dict."""
    found: dict[str, Any] = {}
    for item in fields(config):
        if item.metadata.get("identity", True):
            found[item.name] = _plain(getattr(config, item.name))
    return {key: value for key, value in found.items() if value != {}}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return identity(value)
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return value


def run_id(identity: Mapping[str, Any]) -> str:
    """Name of a run: a hash of every value that changes its numbers (see `pgt.config.identity`)."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def group_id(identity: Mapping[str, Any]) -> str:
    """Name that the seeds of one setting share."""
    return run_id({key: value for key, value in identity.items() if key != "seed"})
