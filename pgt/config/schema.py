"""The schema that every composed config must fit: the keys, what each may be, and which change the numbers of a run.

A typo is answered before torch is imported, so nothing here imports it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from pgt.config.identity import ADDED_LATER, NO_IDENTITY
from pgt.core.machine import has_dali
from pgt.core.registry import PARAMETERS, TIMM

MISSING = "???"
"""A value that a file of conf/ leaves to the user."""


def refuse(*kinds: type, error: str) -> BeforeValidator:
    """Refuse values that pydantic would convert to a number without a word: true to 1, and 3.0 to 3."""

    def check(value: Any) -> Any:
        if isinstance(value, kinds):
            raise PydanticCustomError(error, "refused")
        return value

    return BeforeValidator(check)


def between(low: float, high: float) -> AfterValidator:
    """Refuse a number outside [low, high]. Unlike `Field(ge=..., le=...)`, it tells both bounds."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"must lie in [{low}, {high}], got {value}")
        return value

    return AfterValidator(check)


def _network(name: str) -> str:
    if name not in PARAMETERS and not name.startswith(TIMM):
        ours = ", ".join(PARAMETERS)
        raise ValueError(f"must be one of {ours}, or a network of timm's, as model.name={TIMM}{name}; got {name}")
    return name


def _dotted(name: str) -> str:
    if not all(part.isidentifier() for part in name.split(".")) or "." not in name:
        raise ValueError(f"must name a function or class and its module, as in package.function; got {name}")
    return name


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return text


def _adjoint(wanted: bool) -> bool:
    if wanted and find_spec("torchdiffeq") is None:
        raise ValueError("needs the package torchdiffeq: pip install torchdiffeq, or set it to false")
    return wanted


def _increasing(epochs: list[int]) -> list[int]:
    if any(later <= earlier for earlier, later in zip([0, *epochs], epochs, strict=False)):
        raise ValueError(f"must be epochs from 1 on, each later than the one before, got {epochs}")
    return epochs


def _backend(name: str) -> str:
    return name if name != "auto" else "dali" if has_dali() else "torchvision"


Integer = Annotated[int, refuse(bool, float, error="int_type")]
Number = Annotated[float, refuse(bool, error="float_type")]


class Part(BaseModel):
    """A part of a config. Unknown keys, empty texts and numbers that are not finite are refused."""

    model_config = ConfigDict(
        extra="forbid", str_min_length=1, allow_inf_nan=False, coerce_numbers_to_str=True, defer_build=True
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_missing(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v != MISSING} if isinstance(values, dict) else values


def _mixed(value: Any) -> Iterator[Any]:
    """The mappings in a value with keys of several kinds, such as 1 and a: a run's identity cannot sort them."""
    if isinstance(value, dict):
        try:
            sorted(value)
        except TypeError:
            yield value
        value = [*value.values()]
    for inner in value if isinstance(value, list) else ():
        yield from _mixed(inner)


class Own(Part):
    """A function or class of the user's own, `{_target_: package.function, ...}`. All other keys are its arguments."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, AfterValidator(_dotted)] = Field(alias="_target_")

    @model_validator(mode="before")
    @classmethod
    def _refuse_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and "name" in values:
            raise ValueError(
                "has a name and a _target_: leave one out, or choose a file that has no name (an argument cannot be "
                "called name)"
            )
        return values

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if mixed := next(_mixed(self.arguments), None):
            raise ValueError(f"has a mapping with keys of several kinds, {mixed}: put quotes around all of them")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


OWN, OURS = "<own>", "<ours>"
"""Tags by which pydantic tells a part of the user's own from one of the project's; they show up in its errors."""


def _own_or_ours(value: Any) -> str:
    return OWN if isinstance(value, Own) or (isinstance(value, dict) and "_target_" in value) else OURS


Interpolation = Literal["bilinear", "bicubic"]


class Model(Part):
    name: Annotated[str, AfterValidator(_network)]
    interpolation: Interpolation | None
    """Interpolation of the resize before evaluation; null, for timm's networks: what timm says of the network."""
    stem: Annotated[Literal["standard", "small"], ADDED_LATER] = "standard"
    """small, for ResNets and images of 32 pixels: a 3×3 convolution of stride 1 and no max-pooling."""

    @model_validator(mode="after")
    def _check_interpolation(self) -> Self:
        if self.interpolation is None and not self.name.startswith(TIMM):
            raise ValueError("needs an interpolation: bilinear or bicubic")
        return self


class OwnModel(Own):
    interpolation: Interpolation = "bilinear"
    """As `Model.interpolation`. It is not passed to the function."""


class Data(Part):
    name: str
    drop_last: bool
    """Leave out the last, partial batch of a training epoch; if false, it is filled up from the epoch's start."""


class ImageFolder(Data):
    name: Literal["imagenet", "tiny_imagenet", "imagefolder"]
    root: Annotated[str, NO_IDENTITY]
    image_size: Annotated[Integer, between(1, 4096)]
    backend: Annotated[Literal["auto", "dali", "torchvision"], AfterValidator(_backend)]
    """Decodes and resizes; auto: DALI if it is installed. The pixels of the two differ in their last bits."""
    dali_device: Annotated[Literal["auto", "cpu", "gpu"], NO_IDENTITY]
    workers: Annotated[Annotated[Integer, Field(ge=0)] | None, NO_IDENTITY] = None
    """DALI's threads or torchvision's processes that decode on a rank, never more than one a CPU; null: one a CPU, at
    most 16."""
    on_bad_file: Annotated[Literal["error", "skip"], NO_IDENTITY]
    manifest: Annotated[str | None, NO_IDENTITY] = None
    """File written by `pgt data verify`, to compare with; null: pgt-manifest.json in the root, if there is one."""


class Cifar(Data):
    name: Literal["cifar10", "cifar100"]
    root: Annotated[str, NO_IDENTITY]


class Digits(Data):
    name: Literal["digits"]


class Synthetic(Data):
    name: Literal["synthetic"]
    num_samples: Integer = Field(ge=1)
    num_classes: Integer = Field(ge=2)
    image_size: Integer = Field(ge=1)


class Recipe(Part):
    epochs: Integer = Field(ge=1)
    global_batch: Integer = Field(ge=1)
    local_batch: Annotated[Integer, Field(ge=1)] | None = None
    """Samples that share batch-norm statistics; null, for networks without batch norm: one group a device."""
    lr_peak: Number = Field(gt=0)
    """Peak learning rate at a batch of `lr_reference_batch`, scaled linearly to `global_batch` unless `lr_scaling` is
    none."""
    lr_start: Number = Field(ge=0)
    lr_end: Number = Field(ge=0)
    lr_rule: Literal["paper", "authors"]
    lr_scaling: Literal["linear", "none"]
    lr_reference_batch: Integer = Field(ge=1)
    warmup_epochs: Integer = Field(ge=0)
    cooldown_epochs: Integer = Field(ge=0)
    momentum: Annotated[Number, between(0, 1)]
    weight_decay: Number = Field(ge=0)
    bn_statistics: Literal["first", "mean"]
    """Which running statistics are kept: those of the first device's first group (authors' code), or the mean over all
    groups."""


class Cosine(Part):
    name: Literal["cosine"]


class Step(Part):
    name: Literal["step"]
    milestones: Annotated[list[Integer], AfterValidator(_increasing)]
    """Epochs at whose start the learning rate is multiplied by `factor`."""
    factor: Annotated[Number, between(0, 1)]


class ClipNorm(Part):
    name: Literal["gc"]
    max_norm: Number = Field(gt=0)


class ClipValue(Part):
    name: Literal["value"]
    clip_value: Number = Field(gt=0)


class ClipUnitwise(Part):
    name: Literal["agc"]
    clip_factor: Number = Field(gt=0)
    eps: Number = Field(gt=0)
    exclude: Annotated[str, AfterValidator(_pattern)] | None = None
    """Regular expression: parameters with a name in which it is found are left alone. `^fc\\.` stands for the
    classifier, whatever the network calls it."""


def _phase(epochs: list[int]) -> list[int]:
    if len(epochs) != 2 or not 0 <= epochs[0] <= epochs[1]:
        raise ValueError(f"must be [first, end) of a phase in epochs from 0, as [10, 50]; got {epochs}")
    return epochs


class Amplification(Part):
    name: Literal["amplification"]
    measure: Literal["cancellation", "cancellation_per_weight"]
    """Fluctuation of a layer's gradient over an epoch: of the layer as a whole, or weight by weight."""
    threshold: Literal["mean", "mean_plus_std"]
    """The limit: this statistic of the fluctuation of all layers."""
    select: Literal["above", "below", "random"]
    """The layers that are amplified: those above or below the threshold, or a share drawn at random."""
    ratio: Annotated[Number, between(0, 1)] | None
    """The share of the layers that `select: random` draws; null for the others."""
    kinds: list[Literal["conv", "linear", "norm"]]
    """The layers that take part."""
    where: Literal["activations", "weights"]
    """Amplify within backpropagation, so that the layers before receive it, too, or a layer's own weights only."""
    factor: Number = Field(gt=0)
    epochs: list[Annotated[list[Integer], AfterValidator(_phase)]]
    """Epochs with amplification, from 0: [first, end) of each phase."""
    refresh: Integer = Field(ge=1)
    """Epochs from one choice of layers to the next."""

    @model_validator(mode="after")
    def _check_ratio(self) -> Self:
        if (self.select == "random") != (self.ratio is not None):
            raise ValueError("needs a ratio with select=random, and ratio=null without")
        return self


class WeightCorrection(Part):
    name: Literal["gcw"]
    rho: Number = Field(ge=0, lt=1)
    """Largest norm of the offset, relative to that of the gradient."""
    every: Integer = Field(ge=2)
    """Steps between two snapshots of gradients and weights, and between two fits."""
    history: Integer = Field(ge=1)
    """Snapshots that a fit uses."""
    width: Integer = Field(ge=1)
    """Entries of a query, key and value of the attention."""
    target: Literal["weights", "gradients"]
    """The direction to fit: the displacement of the weights, or the mean gradient of the later steps."""
    fit: Literal["direction", "vector"]
    """direction: only the direction of the target is fitted; vector: its length, too."""
    fit_steps: Integer = Field(ge=1)
    fit_lr: Number = Field(gt=0)
    layers: list[str] | None = None
    """Names of layers; null: the last convolution of each stage."""


class StateCorrection(Part):
    name: Literal["gcode"]
    gamma: Number = Field(ge=0)
    mode: Literal["gradient", "additive"]
    """Whether the branches add to gradients alone, or to the hidden states, too."""
    solver: Literal["euler", "rk4"]
    steps: Integer = Field(ge=1)
    adjoint: Annotated[bool, AfterValidator(_adjoint)]
    """Compute gradients by the adjoint equation, through torchdiffeq."""
    spans: list[Annotated[list[str], Field(min_length=2, max_length=2)]] | None = None
    """First and last residual block that each branch goes around; null: a branch for each stage."""


OurTransform = Annotated[
    ClipNorm | ClipValue | ClipUnitwise | Amplification | WeightCorrection | StateCorrection,
    Field(discriminator="name"),
]


class Method(Part):
    alpha: Annotated[Number, between(0, 1)]
    implementation: Literal["exact", "surrogate", "authors_hook", "authors_hook_fp16"]
    label_smoothing: Annotated[Number, between(0, 1)]
    smoothing: Literal["paper", "uniform"]
    loss: Annotated[Own | None, ADDED_LATER] = None
    """A loss of the user's own in the place of the cross-entropy and PGT: (logits, target) -> scalar."""
    transforms: list[
        Annotated[Annotated[OurTransform, Tag(OURS)] | Annotated[Own, Tag(OWN)], Discriminator(_own_or_ours)]
    ]


Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]


class Trainer(Part):
    precision: Precision
    loss_scale: Number = Field(gt=0)
    """The loss scale at the first step in fp16; the gradient scaler adapts it from then on."""
    loss_scale_growth_interval: Integer = Field(ge=1)
    """Good steps in a row after which the loss scale is doubled."""
    evaluate_every: Integer = Field(ge=1)
    """Epochs between two evaluations; the last epoch is always evaluated."""
    devices: Annotated[Integer | None, NO_IDENTITY, Field(ge=1)] = None
    """Processes on this machine; null: as many GPUs as can share the batch (networks without batch norm: with at least
    64 images each), or one process on the CPU."""
    timeout_minutes: Annotated[Number, NO_IDENTITY, Field(gt=0)]
    """How long a rank waits for another before the run is given up."""
    checkpoint_minutes: Annotated[Number, NO_IDENTITY, Field(gt=0)]
    """Time between two checkpoints within an epoch; there is one at the end of each epoch, too."""
    compile: Annotated[bool, NO_IDENTITY]
    """Compile network and loss with torch.compile."""
    checkpoint_activations: Annotated[bool, NO_IDENTITY]
    """Compute activations again in the backward pass in the place of keeping them: less memory, the same numbers."""
    deterministic: Annotated[bool, NO_IDENTITY]
    """Use deterministic kernels only, at some cost of speed."""
    log_every: Annotated[Integer, NO_IDENTITY, Field(ge=1)]
    """Optimizer steps between two records, and between two checks that the loss is finite."""
    force: Annotated[bool, NO_IDENTITY]
    """Start over if there is a run of this identity, each time the command is given."""


class Record(Part):
    norms_every: Annotated[Integer, NO_IDENTITY, Field(ge=0)]
    """Optimizer steps between two records of the norms of weights, features, logits and gradients; 0: none."""


class Wandb(Part):
    """Options of `wandb.init`; null: as wandb's environment variables say, or else as the comments in conf/ do."""

    project: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None
    name: str | None = None
    group: str | None = None
    tags: list[str] = []
    notes: str | None = None


class TensorBoard(Part):
    pass


NOT_LOGGERS = frozenset({"checkpoints", "export", "lock", "norms"})
"""A logger writes to a folder of its name in the run's folder, so it cannot have these names, which pgt uses there."""


class Logger(Part):
    """The mirrors of metrics.jsonl; null: not this one. Besides these, any name with a class of the user's own."""

    model_config = ConfigDict(extra="allow")

    wandb: Wandb | None = None
    tensorboard: TensorBoard | None = None

    @model_validator(mode="after")
    def _check_own(self) -> Self:
        for name, options in (self.model_extra or {}).items():
            if name in NOT_LOGGERS:
                raise ValueError(f"cannot be called {name}, as a part of a run's folder: rename it")
            fits = isinstance(options, dict) and isinstance(options.get("_target_"), str) and name.isidentifier()
            if options is not None and not fits:
                raise ValueError(f"has no {name}: a logger of your own is {{_target_: package.Class, ...}}")
        return self

    def chosen(self) -> dict[str, dict[str, Any]]:
        """Name and options of each logger that is asked for."""
        return self.model_dump(include={name for name, options in self if options is not None})


class Paths(Part):
    runs: Annotated[str, NO_IDENTITY]


class Config(Part):
    experiment: Annotated[str | None, NO_IDENTITY] = None
    seed: Annotated[Integer, between(0, 2**32 - 1)]
    model: Annotated[Annotated[Model, Tag(OURS)] | Annotated[OwnModel, Tag(OWN)], Discriminator(_own_or_ours)]
    data: ImageFolder | Cifar | Digits | Synthetic = Field(discriminator="name")
    recipe: Recipe
    schedule: Cosine | Step = Field(discriminator="name")
    method: Method
    trainer: Trainer
    record: Record
    logger: Annotated[Logger, NO_IDENTITY] = Field(default_factory=Logger)
    paths: Paths
