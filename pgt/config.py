"""The schema that every composed config must fit.

A field's metadata says what its value may be (`between`, `at_least`, `above`, `choices`) and whether it
changes the numbers of a run (`identity`). No torch here: a typo is answered before torch is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from pgt.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

MISSING: Any = "???"


def between(low: float, high: float) -> Any:
    return field(default=MISSING, metadata={"between": (low, high)})


def at_least(low: float, optional: bool = False) -> Any:
    return field(default=None if optional else MISSING, metadata={"at_least": low})


def above(low: float) -> Any:
    return field(default=MISSING, metadata={"above": low})


def choice(*values: str) -> Any:
    return field(default=MISSING, metadata={"choices": values})


def no_identity(**rule: Any) -> Any:
    """A key that changes how a run is carried out, not its numbers."""
    return field(default=MISSING, metadata={"identity": False, **rule})


@dataclass
class Model:
    name: str = choice(
        "resnet18",
        "resnet50",
        "resnet101",
        "seresnet18",
        "seresnet50",
        "resnet18_nobn",
        "resnet20",
        "resnet20_nobn",
    )
    interpolation: str = choice("bilinear", "bicubic")
    """Of the resize before evaluation."""


@dataclass
class Data:
    name: str = MISSING
    drop_last: bool = MISSING
    """Leave out the last, partial batch of a training epoch; else it is filled up from the epoch's start."""


@dataclass
class Digits(Data):
    pass


@dataclass
class ImageFolder(Data):
    root: str = no_identity()
    image_size: int = at_least(1)
    workers: int = no_identity(at_least=0)
    """Processes that decode; never more than one a CPU. 0: decode in the training process."""


@dataclass
class Synthetic(Data):
    num_samples: int = at_least(1)
    num_classes: int = at_least(2)
    image_size: int = at_least(1)


@dataclass
class Recipe:
    epochs: int = at_least(1)
    global_batch: int = at_least(1)
    local_batch: int | None = at_least(1, optional=True)
    """Samples whose batch-norm statistics belong together; null: one group a device."""
    lr_peak: float = above(0)
    """At `lr_reference_batch`, or at any batch where `lr_scaling` is none."""
    lr_start: float = at_least(0)
    lr_end: float = at_least(0)
    lr_rule: str = choice("paper", "authors")
    lr_scaling: str = choice("linear", "none")
    lr_reference_batch: int = at_least(1)
    warmup_epochs: int = at_least(0)
    cooldown_epochs: int = at_least(0)
    momentum: float = between(0, 1)
    weight_decay: float = at_least(0)


@dataclass
class Schedule:
    name: str = MISSING


@dataclass
class Cosine(Schedule):
    pass


@dataclass
class Step(Schedule):
    milestones: list[int] = MISSING
    """Epochs at whose start the learning rate is multiplied by `factor`."""
    factor: float = between(0, 1)


@dataclass
class Transform:
    name: str = MISSING


@dataclass
class ClipNorm(Transform):
    max_norm: float = above(0)


@dataclass
class ClipValue(Transform):
    clip_value: float = above(0)


@dataclass
class ClipUnitwise(Transform):
    clip_factor: float = above(0)
    eps: float = above(0)
    exclude: str | None = None
    """Regular expression: parameters whose name it finds are left alone."""


@dataclass
class Method:
    alpha: float = between(0, 1)
    implementation: str = choice("exact", "surrogate", "authors_hook")
    label_smoothing: float = between(0, 1)
    smoothing: str = choice("paper", "uniform")
    transforms: list[Any] = MISSING


@dataclass
class Trainer:
    precision: str = choice("fp32", "tf32", "bf16", "fp16", "fp64")
    log_every: int = no_identity(at_least=1)
    """Optimizer steps between two records, and between two looks at whether the loss is finite."""
    force: bool = no_identity()
    """Start over where a run of this identity exists, each time the command is given."""


@dataclass
class Paths:
    runs: str = no_identity()


@dataclass
class Config:
    experiment: str | None = field(default=None, metadata={"identity": False})
    seed: int = between(0, 2**32 - 1)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    recipe: Recipe = field(default_factory=Recipe)
    schedule: Schedule = field(default_factory=Schedule)
    method: Method = field(default_factory=Method)
    trainer: Trainer = field(default_factory=Trainer)
    paths: Paths = field(default_factory=Paths)


DATA: dict[str, type[Data]] = {"digits": Digits, "imagefolder": ImageFolder, "synthetic": Synthetic}
SCHEDULES: dict[str, type[Schedule]] = {"cosine": Cosine, "step": Step}
TRANSFORMS: dict[str, type[Transform]] = {"gc": ClipNorm, "value": ClipValue, "agc": ClipUnitwise}


def validate(composed: DictConfig) -> Config:
    """Fit a composed config to the schema and check every value.

    Raises:
        InputError: a key that the schema lacks, a value of the wrong type or out of range.
    """
    from omegaconf import OmegaConf, open_dict

    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    schema = OmegaConf.structured(Config)
    with open_dict(schema):
        schema.data = OmegaConf.structured(_variant(DATA, plain, "data"))
        schema.schedule = OmegaConf.structured(_variant(SCHEDULES, plain, "schedule"))
    config: Config = _fit(schema, plain)
    config.method.transforms = [_transform(index, item) for index, item in enumerate(config.method.transforms)]
    for path, rule, value in _values(config):
        _check(path, rule, value)
    _check_batches(config.recipe)
    if config.method.implementation == "surrogate" and config.method.alpha == 0:
        raise InputError("the surrogate has no gradient at method.alpha=0: use method.implementation=exact")
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
        raise InputError(f"{prefix}{error.full_key} {_type_error(str(error.msg or error))}") from None


KINDS = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false", "String": "a text"}


def _type_error(message: str) -> str:
    """OmegaConf's message about a value of the wrong type, in our words."""
    found = re.match(r"Value '(.*)' of type '.*' could not be converted to (\w+)", message)
    return f"must be {KINDS.get(found[2], found[2])}, got {found[1]}" if found else message.splitlines()[0]


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


def identity(config: Config) -> dict[str, Any]:
    """The values of a config that change the numbers of its run, as a nested plain dict."""
    return _identity(config)


def _identity(node: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in fields(node):
        if item.metadata.get("identity", True):
            found[item.name] = _plain(getattr(node, item.name))
    return {key: value for key, value in found.items() if value != {}}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _identity(value)
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return value
