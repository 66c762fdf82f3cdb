"""What pgt's launchers have in common: the jobs that a sweeper of Hydra gives them, and the results that it gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from pgt.config.compose import compose_each
from pgt.config.resources import own_conf
from pgt.config.schema import Config
from pgt.launch.jobs import Sweep, label
from pgt.training.job import folder_of


@dataclass(frozen=True)
class Assigned:
    """A job that a launcher is to have trained.

    Attributes:
        number: of the job in its sweep, counted from 0.
        label: printed in front of each message.
        config: checked.
        folder: of its run.
        command: what its environment.json is to have.
    """

    number: int
    label: str
    config: Config
    folder: Path
    command: list[str]


def assigned(config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int, sweep: Sweep) -> list[Assigned]:
    """The jobs that a sweeper gives to a launcher.

    Args:
        config: of the command line, with Hydra's own part.
        job_overrides: of each job.
        first: number of the first of these jobs.
        sweep: that they belong to.

    Raises:
        InputError: a config is wrong, or its data cannot be used.
    """
    with own_conf([str(folder) for folder in config.hydra.searchpath]):
        configs = compose_each(job_overrides)
    return [
        Assigned(number, label(number, sweep.total), one, folder_of(one), sweep.command)
        for number, one in enumerate(configs, first)
    ]


def returned(values: Iterable[float]) -> list[JobReturn]:
    """The objectives of jobs as Hydra's sweepers take them."""
    return [JobReturn(_return_value=value, status=JobStatus.COMPLETED) for value in values]
