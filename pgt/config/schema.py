"""The schema that every composed config must fit.

A field's metadata says what its value may be (`between`, `at_least`, `above`, `choices`) and whether it
changes the numbers of a run (`identity`). No torch here: a typo is answered before torch is imported.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

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
    image_size: int = between(1, 4096)
    backend: str = choice("auto", "dali", "torchvision")
    """Of decoding and resizing; auto: DALI where it is installed. Their pixels differ in their last bits."""
    dali_device: str = no_identity(choices=("auto", "cpu", "gpu"))
    workers: int = no_identity(at_least=0)
    """DALI's threads or torchvision's processes that decode; never more than one a CPU."""
    on_bad_file: str = no_identity(choices=("error", "skip"))
    manifest: str | None = field(default=None, metadata={"identity": False})
    """What `pgt data verify` wrote, to compare with; null: pgt-manifest.json in the root, where there is one."""


@dataclass
class Cifar(Data):
    root: str = no_identity()


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
    """Samples whose batch-norm statistics belong together; null, for networks without: one group a device."""
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
    bn_statistics: str = choice("first", "mean")
    """Running ones: the first device's first group's, as the authors', or the mean over all groups."""


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
    loss_scale: float = above(0)
    """Of the first step in fp16; then the gradient scaler adapts it."""
    loss_scale_growth_interval: int = at_least(1)
    """Good steps in a row after which it is doubled."""
    evaluate_every: int = at_least(1)
    """Epochs; the last one is always evaluated."""
    devices: int | None = field(default=None, metadata={"identity": False, "at_least": 1})
    """Processes on this machine; null: every GPU that the batch can be shared by, or one process on the CPU."""
    timeout_minutes: float = no_identity(above=0)
    """That a rank waits for another before the run is given up."""
    checkpoint_minutes: float = no_identity(above=0)
    """Between two checkpoints within an epoch; there is one at the end of each, too."""
    compile: bool = no_identity()
    """Network and loss through torch.compile."""
    deterministic: bool = no_identity()
    """Deterministic kernels only, at some cost of speed."""
    log_every: int = no_identity(at_least=1)
    """Optimizer steps between two records, and between two looks at whether the loss is finite."""
    force: bool = no_identity()
    """Start over where a run of this identity exists, each time the command is given."""


@dataclass
class Record:
    norms_every: int = no_identity(at_least=0)
    """Optimizer steps between two records of the norms of weights, features, logits and gradients; 0: none."""


@dataclass
class Wandb:
    project: str = MISSING
    entity: str | None = None
    mode: str = choice("online", "offline")


@dataclass
class TensorBoard:
    pass


@dataclass
class Logger:
    """What mirrors metrics.jsonl; null: not this one."""

    wandb: Wandb | None = None
    tensorboard: TensorBoard | None = None

    def chosen(self) -> dict[str, dict[str, Any]]:
        """Name and options of each logger that is asked for."""
        return {name: options for name, options in asdict(self).items() if options is not None}


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
    record: Record = field(default_factory=Record)
    logger: Logger = field(default_factory=Logger, metadata={"identity": False})
    paths: Paths = field(default_factory=Paths)


DATA: dict[str, type[Data]] = {
    "imagenet": ImageFolder,
    "tiny_imagenet": ImageFolder,
    "imagefolder": ImageFolder,
    "cifar10": Cifar,
    "cifar100": Cifar,
    "digits": Digits,
    "synthetic": Synthetic,
}
SCHEDULES: dict[str, type[Schedule]] = {"cosine": Cosine, "step": Step}
TRANSFORMS: dict[str, type[Transform]] = {"gc": ClipNorm, "value": ClipValue, "agc": ClipUnitwise}
