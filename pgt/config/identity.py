"""The identity of a run: the values of its config that change its numbers, and the ids made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

NO_IDENTITY = "no part of the identity"
"""Marks a key of the schema, as in `Annotated[bool, NO_IDENTITY]`: it changes how a run is carried out and none of its
numbers."""

ADDED_LATER = "no part of the identity while it has its default"
"""Marks a key of the schema that came after the first runs. Its default is what they did: their ids stay the same."""


def identity(config: Any) -> dict[str, Any]:
    """The values of a config, or of a part of it, that change the numbers of its run, as a nested plain dict."""
    found = {
        name: _plain(getattr(config, name))
        for name, field in type(config).model_fields.items()
        if NO_IDENTITY not in field.metadata
        and not (ADDED_LATER in field.metadata and getattr(config, name) == field.default)
    }
    arguments = config.model_extra or {}  # of a function of the user's own
    return {key: value for key, value in found.items() if value != {}} | arguments


def with_files(identity: Mapping[str, Any], files: str | None) -> dict[str, Any]:
    """The identity of a run on data whose name stands for any files: `files` tells which (see `pgt.data.DataSet`)."""
    return {**identity, "data": {**identity["data"], "files": files}} if files else dict(identity)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return identity(value) if hasattr(value, "model_fields_set") else value


def run_id(identity: Mapping[str, Any]) -> str:
    """The name of a run: a hash of every value that changes its numbers."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def group_id(identity: Mapping[str, Any]) -> str:
    """The name that all seeds of one setting share."""
    return run_id({key: value for key, value in identity.items() if key != "seed"})
