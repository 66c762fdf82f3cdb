"""The words for a run's method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def method_label(identity: Mapping[str, Any]) -> str:
    """The method of a run as the paper's tables name it: `baseline`, `pgt`, `gc`, `agc+pgt`, ...

    PGT by an implementation other than the exact one has the name of that implementation. A loss or a transform of the
    user's own has the name of its function: `package.function`.
    """
    method = identity["method"]
    parts = [name_of(part) for part in (method.get("loss"), *method["transforms"]) if part]
    if method["alpha"] != 1:
        parts.append("pgt" if method["implementation"] == "exact" else method["implementation"])
    return "+".join(parts) or "baseline"


def name_of(part: Mapping[str, Any]) -> str:
    """The name of a part of an identity, or of a config.yaml, which calls a function of the user's own `_target_`."""
    return str(part["_target_"] if "_target_" in part else part["name"])


def as_pgt(method: str, implementation: str) -> str:
    """A method's label with PGT by any implementation called `pgt`, as in the paper's rows."""
    return "+".join("pgt" if part == implementation else part for part in method.split("+"))


def with_alpha(method: str, alpha: float) -> str:
    """A method's label with its α: `gc+pgt α=0.25`."""
    return method + (f" α={alpha:g}" if alpha != 1 else "")


def experiment_name(experiment: str | None) -> str:
    """The name of an experiment, which is the folder of its runs: `custom` for runs without one."""
    return experiment or "custom"


def run_title(experiment: str, label: str, seed: int) -> str:
    """The title of a run: `demo/nobn gc+pgt α=0.25 seed 0`."""
    return f"{experiment} {label} seed {seed}"


def title(experiment: str | None, identity: Mapping[str, Any]) -> str:
    """The title of a run with this identity (see `pgt.config.identity`)."""
    name = experiment or f"{identity['model']['name']} on {identity['data']['name']}"
    return run_title(name, with_alpha(method_label(identity), identity["method"]["alpha"]), identity["seed"])
