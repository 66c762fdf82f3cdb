"""The launchers that pgt adds to Hydra: `hydra/launcher=local` and `hydra/launcher=slurm`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pgt.config.compose import compose_each
from pgt.config.resources import own_conf
from pgt.config.schema import Config
from pgt.launch.jobs import Sweep, label
from pgt.training.job import folder_of


def register() -> None:
    """Make the launchers known to Hydra, beside those of installed plugins."""
    plugins = Plugins.instance()
    for launcher in (LocalLauncher, SlurmLauncher):
        plugins.register(launcher)
        # Hydra looks up the `_target_` of a config here, and refuses names that do not begin like this.
        plugins.class_name_to_class[f"hydra_plugins.pgt.{launcher.__name__}"] = launcher


@dataclass(frozen=True)
class LaunchedJob:
    """A job that a launcher is to have trained.

    Attributes:
        number: of the job in its sweep, counted from 0.
        label: printed in front of each message.
        config: checked.
        folder: the folder of its run.
        command: the words that its environment.json shows as its command.
    """

    number: int
    label: str
    config: Config
    folder: Path
    command: list[str]


class LocalLauncher(Launcher):
    """`hydra/launcher=local`: `launch` of `pgt.launch.local`, with the options of conf/hydra/launcher/local.yaml."""

    implementation = "pgt.launch.local"

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config = config
        self._sweep: Sweep = task_function.keywords["sweep"]  # type: ignore[attr-defined]  # a partial of `jobs.task`

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train or submit the jobs that a sweeper asks for; returns their objectives.

        Raises:
            InputError: a config is wrong, its data cannot be used, or an option does not fit.
        """
        with own_conf([str(folder) for folder in self._config.hydra.searchpath]):
            configs = compose_each(job_overrides)
        jobs = [
            LaunchedJob(number, label(number, self._sweep.total), config, folder_of(config), self._sweep.command)
            for number, config in enumerate(configs, initial_job_idx)
        ]
        launch = import_module(self.implementation).launch
        objectives = launch(jobs, Path(self._config.hydra.sweep.dir), **self._options)
        return [JobReturn(_return_value=value, status=JobStatus.COMPLETED) for value in objectives]


class SlurmLauncher(LocalLauncher):
    """`hydra/launcher=slurm`: `launch` of `pgt.launch.slurm`, with the options of conf/hydra/launcher/slurm.yaml."""

    implementation = "pgt.launch.slurm"
