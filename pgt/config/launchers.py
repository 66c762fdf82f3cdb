"""Checks of the launcher and the sweeper that a config chooses, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from pgt.config.hints import HYDRA_GROUPS
from pgt.config.rules import in_words
from pgt.config.schema import Integer, Part


def _gpus(value: Any) -> Any:
    if value is not None and not re.fullmatch(r"(\w+:)?\d+", str(value)):
        raise ValueError(f"must be a whole number, or a type and a number, as in a100:2; got {value}")
    return value


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
    tasks_per_node: Integer | None = Field(ge=1)
    parallel: Integer | None = Field(ge=1)
    warning: Integer = Field(ge=0)
    setup: list[str]
    python: str | None
    wait: bool
    then: str | None


OPTIONS: dict[str, type[Part]] = {
    "hydra_plugins.pgt.LocalLauncher": Local,
    "hydra_plugins.pgt.SlurmLauncher": Slurm,
}
"""The options of pgt's own launchers, by the `_target_` of each. Those of others are checked by their packages."""


def faults(composed: DictConfig) -> Iterator[tuple[str, str]]:
    """The keys below `hydra` whose values cannot be used, each with what is wrong and how to mend it."""
    for group in HYDRA_GROUPS:
        key, chosen = group.replace("/", "."), composed.hydra[group.rpartition("/")[2]]
        if not isinstance(chosen, DictConfig):
            yield key, f"{key}={chosen} chooses nothing: write {group}={chosen or 'basic'}"
        elif schema := OPTIONS.get(str(chosen.get("_target_"))):
            try:
                options = dict(OmegaConf.to_container(chosen, resolve=True))  # type: ignore[arg-type]
                schema.model_validate({name: value for name, value in options.items() if name != "_target_"})
            except OmegaConfBaseException as error:
                yield key, f"{error.full_key or key} cannot be resolved: {str(error.msg).splitlines()[0]}"
            except ValidationError as error:
                yield from in_words(error, options, f"{key}.")
