"""Checks of the launcher and the sweeper that a config chooses, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast

from hydra.conf import RuntimeConf
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, ValidationInfo

from pgt.config.grammar import key_of
from pgt.config.hints import HYDRA_GROUPS, REFUSED, TAKEN
from pgt.config.rules import in_words
from pgt.config.schema import Integer, Part


def _gpus(value: Any) -> Any:
    if value is not None and not re.fullmatch(r"(\w+:)?\d+", str(value)):
        raise ValueError(f"must be a whole number, or a type and a number, as in a100:2; got {value}")
    return value


def _time(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, int) and not {"hydra.launcher", f"hydra.launcher.{info.field_name}"} & set(info.context or ()):
        raise ValueError(
            "must be in quotes in a file: '4:00:00', or '240' for minutes (without them, YAML reads 4:00:00 as the "
            f"number 14400); got {value}"
        )
    return value


Time = Annotated[Any, AfterValidator(_time)]
"""A time for sbatch. A number in a file may be a time that YAML has read as one; on a command line it is minutes."""


class Local(Part):
    """The options in conf/hydra/launcher/local.yaml."""

    gpus_per_job: Integer | None = Field(ge=0)
    cpus_per_job: Integer | None = Field(ge=1)


class Slurm(Part):
    """The options in conf/hydra/launcher/slurm.yaml. All others are for sbatch, which checks them."""

    model_config = ConfigDict(extra="allow")

    nodes: Integer | None = Field(ge=1)
    gpus_per_node: Annotated[Any, AfterValidator(_gpus)]
    cpus_per_task: Integer | None = Field(ge=1)
    time: Time
    time_min: Time = None
    begin: Time = None
    deadline: Time = None
    tasks_per_node: Integer | None = Field(ge=1)
    parallel: Integer | None = Field(ge=1)
    warning: Integer = Field(ge=0)
    setup: list[str]
    python: str | None
    wait: bool
    then: str | None


SLURM = "hydra_plugins.pgt.SlurmLauncher"
"""The `_target_` of hydra/launcher=slurm."""

OPTIONS: dict[str, type[Part]] = {
    "hydra_plugins.pgt.LocalLauncher": Local,
    SLURM: Slurm,
}
"""The options of pgt's own launchers, by the `_target_` of each. Those of others are checked by their packages."""


def hydra_overrides(composed: DictConfig) -> list[str]:
    """The overrides of Hydra's own keys that a config was composed with."""
    return cast(list[str], OmegaConf.to_container(composed.hydra.overrides.hydra))  # unresolved, as they were given


def searches(runtime: RuntimeConf) -> bool:
    """Whether the chosen sweeper tries values of its own choice, as optuna does."""
    return str(runtime.choices.get("hydra/sweeper", "basic")) != "basic"


def faults(composed: DictConfig) -> Iterator[tuple[str, str]]:
    """The keys below `hydra` whose values cannot be used, each with what is wrong and how to mend it."""
    given = {key_of(text) for text in hydra_overrides(composed)}
    for key in ("hydra.job.chdir", "hydra.sweeper.params"):  # files and mappings set them, too
        if OmegaConf.select(composed, key, throw_on_resolution_failure=False):
            yield key, f"leave out {key}: {REFUSED[key]}"
    key = "hydra.sweeper.max_batch_size"
    size = OmegaConf.select(composed, key, throw_on_resolution_failure=False)
    if size is not None and size < 1:
        yield key, f"{key} must be at least 1, got {size}"
    for group in HYDRA_GROUPS:
        key, name = group.replace("/", "."), group.rpartition("/")[2]
        chosen = OmegaConf.select(composed.hydra, name)  # None if it is missing, by ~hydra/launcher
        if not isinstance(chosen, DictConfig):
            yield key, f"{key}={chosen or 'null'} chooses nothing: write {group}={chosen or 'basic'}"
        elif schema := OPTIONS.get(str(chosen.get("_target_"))):
            try:
                options = dict(OmegaConf.to_container(chosen, resolve=True))  # type: ignore[arg-type]
                if schema is Slurm:
                    yield from _conflicts(options, composed.hydra)
                del options["_target_"]
                schema.model_validate(options, context=given)
            except OmegaConfBaseException as error:
                yield key, f"{error.full_key or key} cannot be resolved: {str(error.msg).splitlines()[0]}"
            except ValidationError as error:
                yield from in_words(error, options, f"{key}.")


def _conflicts(options: Mapping[str, Any], settings: DictConfig) -> Iterator[tuple[str, str]]:
    """The options of `slurm` that do not go with what pgt itself tells sbatch, or with the sweeper."""
    for name, value in options.items():
        if value is not None and (why := TAKEN.get(name.replace("-", "_"))):
            yield f"hydra.launcher.{name}", f"leave out hydra.launcher.{name}: {why}"
    if options.get("then") and (searches(settings.runtime) or OmegaConf.select(settings, "sweeper.max_batch_size")):
        key = "hydra.launcher.then"
        yield key, f"leave out {key}: a sweeper that chooses values, and hydra.sweeper.max_batch_size, submit in steps"
