"""Messages about mistyped keys and choices, with what may have been meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence, Set
from typing import Any

from pgt.config.resources import choices, groups, is_folder, read_conf, sources

HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
"""The groups of Hydra's that are chosen on a command line."""

LOGS = "pgt names the files of a job, which are in the folder of the sweep"
OUTPUT = "pgt reads what sbatch prints"
REQUEUED = "a job that is stopped is always requeued, and its run goes on"
TAKEN = {
    "array": "pgt makes the array, and hydra.launcher.parallel limits how many of its jobs train at a time",
    "chdir": "data and runs are found from the folder in which the command is given",
    "comment": "pgt finds the jobs of its runs by it",
    "error": LOGS,
    "no_requeue": REQUEUED,
    "ntasks_per_node": "write hydra.launcher.tasks_per_node",
    "open_mode": LOGS,
    "output": LOGS,
    "parsable": OUTPUT,
    "quiet": OUTPUT,
    "requeue": REQUEUED,
    "signal": "write hydra.launcher.warning=SECONDS",
    "test_only": OUTPUT,
    "wrap": "a job trains a run",
}
"""The options of sbatch that `hydra/launcher=slurm` sets itself, or that would mislead it, each with the reason."""

REFUSED = {
    "hydra.mode": "-m goes through a sweep; without it, one run is trained",
    "hydra.job.chdir": "data and runs are found from the folder in which the command is given",
    "hydra.sweeper.params": (
        "a sweep belongs in the file of an experiment: sweep: {method.alpha: [0.25, 0.5]}, or on the command line: "
        "-m seed=0,1"
    ),
    "sweep": "an override of a key takes the place of its values in an experiment's sweep, as in seed=0,1",
}
"""Keys that would have no effect or a harmful one, each with what to know or do instead."""

NAMES_ELSEWHERE = {
    "batch_size": "recipe.global_batch",
    "learning_rate": "recipe.lr_peak",
    "lr": "recipe.lr_peak",
    "max_epochs": "recipe.epochs",
    "num_workers": "data.workers",
}
"""Our keys by the names that other programs give them."""


def unknown(keys: Iterable[str], known: Set[str]) -> str:
    """Name unknown keys, each with the nearest known key or the choice of a group that has it."""
    return "; ".join(f"unknown key '{key}'{_hint(key, known)}" for key in keys)


def _hint(key: str, known: Set[str]) -> str:
    if key.startswith("hydra."):
        return _hint_of_hydra(key, known)
    group, _, rest = key.partition(".")
    if owners := _owners(group, rest):
        return f": it goes with {owners}"
    alike = sorted(name for name in known | set(groups()) if ("." in name) == ("." in key))
    if (same := NAMES_ELSEWHERE.get(key.rpartition(".")[2])) in known:
        return f": did you mean '{same}'?"
    if found := called(key, known) or difflib.get_close_matches(key, alike, n=1):
        return f": did you mean {' or '.join(map(repr, found))}?"
    return "; see `pgt train --cfg job` for the keys"


def called(name: str, known: Set[str]) -> list[str]:
    """At most six keys and groups whose last part is `name`; if there is none, begins with it: `lr_peak` for `lr`."""
    last = {
        key: re.split(r"[./]", key)[-1]
        for key in sorted({*known, *groups(), *HYDRA_GROUPS})
        if not key.startswith("sweep.")
    }
    exact = [key for key, part in last.items() if part == name]
    found = exact or [key for key, part in last.items() if part.startswith(f"{name}_")]
    return found if len(found) <= 6 else []


def _owners(group: str, key: str) -> str:
    """The choices of a group that have a key, as in `data=cifar10 or cifar100`; empty if none has it."""
    owners = [name for name in choices(group) if key in paths(read_conf(f"{group}/{name}"))]
    return f"{group}={' or '.join(owners)}" if owners else ""


def _hint_of_hydra(key: str, known: Set[str]) -> str:
    above, _, last = key.rpartition(".")
    if owners := _owners(above.replace(".", "/"), last):
        return f": it goes with {owners}"
    beside = sorted(name for name in known if name.rpartition(".")[0] == above and "_target_" not in name)
    if key in known:  # an empty mapping
        return f": it takes new keys with a plus, +{key}=..."
    sbatch = above == "hydra.launcher" and f"{above}.partition" in known
    if sbatch and last in TAKEN:
        return f": {TAKEN[last]}"
    more = f"; an option of sbatch needs a plus, +{key}=..." if sbatch else ""
    if nearest := difflib.get_close_matches(key, beside or sorted(known), n=1, cutoff=0.85):
        return f": did you mean '{nearest[0]}'?{more}"
    listed = f": choose one of {', '.join(beside)}" if beside else "; see `pgt train --cfg hydra` for the keys"
    return more or listed


def unknown_choice(group: str, choice: object, options: Sequence[str] = ()) -> str:
    """Name a choice that a group does not have, with the nearest one or all of them.

    Args:
        options: of a group of Hydra's, its choices: all of them are named.
    """
    name = "null" if choice is None else str(choice)
    known = options or choices(group)
    if group == "experiment" and is_folder(group, name):
        return f"experiment '{name}' is a folder: for all that is in it, write -m experiment={name}/all"
    nearest = difflib.get_close_matches(name, known, n=1) if name != "null" else []
    folders = dict.fromkeys(option.rpartition("/")[0] or option for option in known)
    listed = f"choose one of {', '.join(folders)}"
    hint = f"did you mean '{nearest[0]}'?{f' Or {listed}' if options else ''}" if nearest else listed
    if group == "experiment" and not sources().own and name.partition("/")[0] not in folders:
        hint += " Or is --config-dir missing?" if nearest else "; or is --config-dir missing?"
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
