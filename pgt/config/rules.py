"""Whether a composed config fits the schema, and every value its range. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from pgt.config import sharing as layout
from pgt.config.resources import SIZES
from pgt.config.schema import (
    DATA,
    SCHEDULES,
    TRANSFORMS,
    ClipUnitwise,
    Config,
    ImageFolder,
    Recipe,
    Synthetic,
    Transform,
)
from pgt.core.errors import InputError
from pgt.core.machine import has_dali

if TYPE_CHECKING:
    from omegaconf import DictConfig


def validate(composed: DictConfig) -> Config:
    """Fit a composed config to the schema and check every value.

    Raises:
        InputError: a key that the schema lacks, a value of the wrong type or out of range.
    """
    from omegaconf import OmegaConf, open_dict

    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    plain.pop("sweep", None)  # of an experiment: no value of a run, but what `compose.spell_out` goes through
    schema = OmegaConf.structured(Config)
    with open_dict(schema):
        schema.data = OmegaConf.structured(_variant(DATA, plain, "data"))
        schema.schedule = OmegaConf.structured(_variant(SCHEDULES, plain, "schedule"))
    config: Config = _fit(schema, plain)
    if isinstance(config.data, ImageFolder) and config.data.backend == "auto":
        config.data.backend = "dali" if has_dali() else "torchvision"
    config.method.transforms = [_transform(index, item) for index, item in enumerate(config.method.transforms)]
    for path, rule, value in _values(config):
        _check(path, rule, value)
    _check_batches(config.recipe)
    if config.recipe.local_batch is None and not config.model.name.endswith("_nobn"):
        raise InputError(
            f"{config.model.name} has batch norm, whose statistics would depend on the number of devices: set "
            f"recipe.local_batch, the samples they belong to (={config.recipe.global_batch} makes it the whole batch)"
        )
    if config.trainer.devices is not None:
        layout.check(config.recipe, config.trainer.devices)
    if config.method.implementation == "surrogate" and config.method.alpha == 0:
        raise InputError("the surrogate has no gradient at method.alpha=0: use method.implementation=exact")
    if config.method.implementation == "authors_hook" and config.recipe.local_batch is None:
        raise InputError(
            "what the authors' hook computes depends on the size of a group: set recipe.local_batch "
            f"(={config.recipe.global_batch} makes it the whole batch)"
        )
    return config


def _variant(variants: dict[str, Any], plain: dict[Any, Any], group: str) -> Any:
    name = (plain.get(group) or {}).get("name")
    if name not in variants:
        raise InputError(f"{group}.name must be one of {', '.join(variants)}; got {name}")
    return variants[name]


def _transform(index: int, item: Any) -> Transform:
    from omegaconf import OmegaConf

    path = f"method.transforms.{index}"
    if not isinstance(item, dict) or item.get("name") not in TRANSFORMS:
        raise InputError(f"{path} must be a mapping with a name out of {', '.join(TRANSFORMS)}; got {item}")
    fitted: Transform = _fit(OmegaConf.structured(TRANSFORMS[item["name"]]), item, f"{path}.")
    if isinstance(fitted, ClipUnitwise) and fitted.exclude is not None:
        try:
            re.compile(fitted.exclude)
        except re.error as error:
            raise InputError(f"{path}.exclude is no regular expression: {error}") from None
    return fitted


def _fit(schema: DictConfig, plain: dict[Any, Any], prefix: str = "") -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, plain))
    except ConfigKeyError as error:
        raise InputError(f"unknown key '{prefix}{error.full_key}'") from None
    except MissingMandatoryValue as error:
        key = f"{prefix}{error.full_key}"
        raise InputError(f"{key} is missing: add {key}=...") from None
    except OmegaConfBaseException as error:
        key, message = f"{prefix}{error.full_key}", str(error.msg or error)
        if unset := re.search(r"Environment variable '(\w+)' not found", message):
            raise InputError(f"{key} is missing: export {unset[1]}=... or add {key}=...") from None
        raise InputError(f"{key} {_type_error(message)}") from None


KINDS = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false", "String": "a text"}


def _type_error(message: str) -> str:
    """OmegaConf's message about a value of the wrong type, in our words."""
    found = re.match(r"Value '(.*)' of type '.*' could not be converted to (\w+)", message)
    if found:
        return f"must be {KINDS.get(found[2], found[2])}, got {found[1]}"
    if found := re.match(r"Value '(.*)' is not a valid bool", message):
        return f"must be true or false, got {found[1]}"
    if "Incompatible value 'None'" in message:
        return "must not be null"
    return message.splitlines()[0]


def _values(node: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(dotted key, metadata, value) of every leaf of a schema object."""
    for item in fields(node):
        value, path = getattr(node, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            yield from _values(value, f"{path}.")
            continue
        yield path, dict(item.metadata), value
        for index, element in enumerate(value if isinstance(value, list) else ()):
            if is_dataclass(element):
                yield from _values(element, f"{path}.{index}.")


def _check(path: str, rule: dict[str, Any], value: Any) -> None:
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path} must be finite, got {value}")
    if "between" in rule:
        low, high = rule["between"]
        if not low <= value <= high:
            raise InputError(f"{path} must lie in [{low}, {high}], got {value}")
    if "at_least" in rule and not value >= rule["at_least"]:
        raise InputError(f"{path} must be at least {rule['at_least']}, got {value}")
    if "above" in rule and not value > rule["above"]:
        raise InputError(f"{path} must be above {rule['above']}, got {value}")
    if value == "":
        raise InputError(f"{path} must not be empty")
    if "choices" in rule and value not in rule["choices"]:
        raise InputError(f"{path} must be one of {', '.join(rule['choices'])}; got {value}")


def check_size(config: Config) -> None:
    """Raises InputError unless a data set whose size is known fills one batch."""
    data, batch = config.data, config.recipe.global_batch
    samples = data.num_samples if isinstance(data, Synthetic) else SIZES.get(data.name, (batch, 0))[0]
    if samples < batch and data.drop_last:
        raise InputError(
            f"recipe.global_batch={batch} is more than the {samples} training samples of data={data.name}: lower it "
            "(recipe=demo has 64)"
        )


def _check_batches(recipe: Recipe) -> None:
    if recipe.local_batch and recipe.global_batch % recipe.local_batch:
        raise InputError(
            f"recipe.global_batch ({recipe.global_batch}) must be a multiple of recipe.local_batch "
            f"({recipe.local_batch}): add recipe.local_batch={recipe.global_batch}, or null without batch norm"
        )
    if recipe.warmup_epochs + recipe.cooldown_epochs >= recipe.epochs:
        raise InputError(
            f"recipe.epochs ({recipe.epochs}) must exceed recipe.warmup_epochs + recipe.cooldown_epochs "
            f"({recipe.warmup_epochs} + {recipe.cooldown_epochs}): lower those, too"
        )
