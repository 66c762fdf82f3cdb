"""Checks of a composed config: against the schema, and of its values against each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pgt.config import sharing
from pgt.config.hints import paths, unknown
from pgt.config.schema import MISSING, OURS, OWN, Amplification, Config, Model, Recipe, Step, Synthetic
from pgt.core.errors import InputError, unset_variable
from pgt.core.registry import DATA_SETS, HOOKS, PARAMETERS, STEMS

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping with a name, as in conf/",
    "union_tag_not_found": "a mapping with a name, as in conf/",
    "finite_number": "finite",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "above {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "below {lt:g}",
    "too_short": "a list of at least {min_length} items",
    "too_long": "a list of at most {max_length} items",
}
"""What a value must be, by the first letters of pydantic's error type."""


def validate(composed: DictConfig, wrong: Sequence[str] = (), place: Callable[[str], str] = lambda key: "") -> Config:
    """Check a composed config and return it as a `Config`.

    Args:
        composed: what Hydra composed, resolved or not.
        wrong: errors that are known already, to be reported with the others.
        place: tells in which file a key stands, to be added to an error; empty if that is not known.

    Raises:
        InputError: a key that is unknown or missing, a value of the wrong type or out of range, or values that do not
            fit each other.
    """
    plain, unresolved = _resolved(composed)
    told = {key: line + place(key) for key, line in unresolved.items()}
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        for key, line in in_words(error, plain):
            told.setdefault(key, line + place(key))
        raise InputError("; ".join([*wrong, *told.values()])) from None
    if lines := [*wrong, *told.values(), *_conflicts(config)]:
        raise InputError("; ".join(lines))
    return config


_without_data = False


@contextmanager
def without_data() -> Iterator[None]:
    """A context in which `data.root` may name an environment variable that is not set: a plan needs no data."""
    global _without_data
    _without_data = True
    try:
        yield
    finally:
        _without_data = False


def _resolved(composed: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain values of a config, and by key the errors of interpolations that cannot be resolved."""
    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    apart = ("hydra", "sweep")  # `sweep`, of an experiment, is no value of a run: `pgt.config.choices` reads it
    config = OmegaConf.create({str(key): value for key, value in plain.items() if key not in apart})
    wrong: dict[str, str] = {}
    if changing := re.search(
        r"\$\{\s*(now:|hydra:job\.(num|id)\b|oc\.env:SLURM_\w*JOB_ID)[^}]*\}", str(plain.get("paths"))
    ):
        wrong["paths.runs"] = (
            f"paths.runs must name the same folder each time, or no run is found again: leave out {changing[0]}"
        )
        OmegaConf.update(config, "paths.runs", MISSING)
    while True:
        try:
            return dict(OmegaConf.to_container(config, resolve=True)), wrong  # type: ignore[arg-type]
        except OmegaConfBaseException as error:
            key = str(error.full_key)
            if key in wrong:  # leaving it out did not help
                raise InputError(wrong[key]) from None
            unset = unset_variable(error)
            if unset and key == "data.root" and _without_data:
                OmegaConf.update(config, key, "not set")
                continue
            if unset:
                wrong[key] = f"{key} is missing: export {unset}=... or add {key}=..."
            else:
                wrong[key] = f"{key} cannot be resolved: {str(error.msg).splitlines()[0]}"
            OmegaConf.update(config, key, MISSING)


def in_words(error: ValidationError, plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Pydantic's errors in our words, each with its key.

    Args:
        plain: the values that were checked.
        prefix: stands before each key if `plain` is a part of the config, as in `hydra.launcher.`.
    """
    for detail in error.errors():
        key = prefix + ".".join(_location(detail, plain))
        yield key, _in_words(key, detail, paths(plain, prefix))


def _location(detail: ErrorDetails, plain: Any) -> Iterator[str]:
    """The keys that lead to an error. Pydantic adds the `name` or tag that chose one of several classes: left out."""
    node = plain
    for part in detail["loc"]:
        if part in (OWN, OURS) or (isinstance(node, Mapping) and part == node.get("name") and part not in node):
            continue
        yield str(part)
        node = node.get(part) if isinstance(node, Mapping) else node[int(part)] if isinstance(node, list) else None


def _in_words(key: str, detail: ErrorDetails, known: set[str]) -> str:
    """One of pydantic's errors in our words: the key, what its value must be, and what it is."""
    kind, got, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        inner = paths(got, f"{key}.") or {key}
        return unknown(sorted(inner), known - {key, *inner})
    if kind == "missing":
        return f"{key} is missing: add {key}=..."
    if kind == "value_error":  # raised by a validator of the schema, in our words
        return f"{key} {context['error']}"
    if kind == "string_too_short":
        return f"{key} must not be empty"
    if got is None:
        return f"{key} must not be null"
    if kind == "list_type":
        return f"{key} must be a list, as in {key}=[{got}]; got {got}"
    if kind == "literal_error":
        return f"{key} must be one of {_listed(context['expected'])}; got {got}"
    if kind == "union_tag_invalid":
        return f"{key}.name must be one of {_listed(context['expected_tags'])}; got {context['tag']}"
    kinds = (words for name, words in KINDS.items() if kind.startswith(name))
    return f"{key} must be {next(kinds, detail['msg']).format(**context)}, got {got}"


def _listed(quoted: str) -> str:
    """Pydantic's list of choices, `'a', 'b' or 'c'`, as `a, b, c`."""
    return ", ".join(re.findall(r"'(.*?)'", quoted))


def check_size(config: Config) -> None:
    """Raises InputError unless a data set of a known size fills one batch."""
    data, batch = config.data, config.recipe.global_batch
    samples = data.num_samples if isinstance(data, Synthetic) else (DATA_SETS[data.name].samples or (batch, 0))[0]
    if samples < batch and data.drop_last:
        raise InputError(
            f"recipe.global_batch={batch} is more than the {samples} training samples of data={data.name}: lower it "
            "(recipe=demo has 64)"
        )


def _conflicts(config: Config) -> Iterator[str]:
    """Errors of a config whose values are fine one by one: those that do not go together."""
    recipe, method = config.recipe, config.method
    if recipe.local_batch and recipe.global_batch % recipe.local_batch:
        yield (
            f"recipe.global_batch ({recipe.global_batch}) must be a multiple of recipe.local_batch "
            f"({recipe.local_batch}): add recipe.local_batch={recipe.global_batch}, or null without batch norm"
        )
    elif config.trainer.devices is not None:
        try:
            sharing.check(recipe, config.trainer.devices)
        except InputError as error:
            yield str(error)
    if config.trainer.compile and config.trainer.checkpoint_activations:
        yield "torch.compile chooses what to keep: set trainer.compile or trainer.checkpoint_activations, not both"
    if recipe.warmup_epochs + recipe.cooldown_epochs >= recipe.epochs:
        yield (
            f"recipe.epochs ({recipe.epochs}) must exceed recipe.warmup_epochs + recipe.cooldown_epochs "
            f"({recipe.warmup_epochs} + {recipe.cooldown_epochs}): lower those, too"
        )
    if isinstance(config.schedule, Step) and (late := [n for n in config.schedule.milestones if n >= recipe.epochs]):
        yield (
            f"schedule.milestones: epoch {late[0]} is never reached with recipe.epochs={recipe.epochs}: name earlier "
            f"ones, as in schedule.milestones=[{recipe.epochs // 2},{recipe.epochs * 3 // 4}]"
        )
    name = config.model.name
    if recipe.local_batch is None and name in PARAMETERS and not name.endswith("_nobn"):
        yield needs_groups(name, recipe)
    if isinstance(config.model, Model) and config.model.stem == "small" and name not in STEMS:
        yield f"{name} has no other stem: leave model.stem=small out; it is for {', '.join(STEMS)}"
    for index, transform in enumerate(method.transforms):
        for first, end in transform.epochs if isinstance(transform, Amplification) else ():
            if first >= recipe.epochs:
                yield (
                    f"method.transforms.{index}.epochs: the phase [{first}, {end}] begins after the last of "
                    f"recipe.epochs={recipe.epochs} epochs, which count from 0: begin earlier, or train longer"
                )
    if method.implementation == "surrogate" and method.alpha == 0:
        yield "the surrogate has no gradient at method.alpha=0: use method.implementation=exact"
    if method.implementation in HOOKS and recipe.local_batch is None:
        yield (
            "what the authors' hook computes depends on the size of a group: set recipe.local_batch "
            f"({_whole_batch(recipe)})"
        )
    if method.loss and (method.alpha, method.label_smoothing, method.implementation) != (1, 0, "exact"):
        yield (
            "method.loss takes the place of the cross-entropy, of label smoothing and of PGT: begin with "
            "method=baseline, and give the loss arguments of its own"
        )


def needs_groups(network: str, recipe: Recipe) -> str:
    """The message for a network with batch norm and a recipe without `local_batch`."""
    return (
        f"{network} has batch norm: set recipe.local_batch, the number of samples that share batch-norm statistics "
        f"({_whole_batch(recipe)})"
    )


def _whole_batch(recipe: Recipe) -> str:
    return f"recipe.local_batch={recipe.global_batch}: the whole batch"
