"""Make the launchers of pgt known to Hydra, which looks for plugins only in `hydra_plugins`, in whatever it trains.

Hydra imports this file for each command line, so it imports nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """`hydra/launcher=local`: see `pgt.launch.local`, and conf/hydra/launcher/local.yaml for the options."""

    module = "local"

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.task, self.config = task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        launch = import_module(f"pgt.launch.{self.module}").launch
        sweep = self.task.keywords["sweep"]  # type: ignore[attr-defined]  # it is a partial of `pgt.launch.jobs.task`
        results: Sequence[JobReturn] = launch(self.config, job_overrides, initial_job_idx, sweep, **self.options)
        return results


class SlurmLauncher(LocalLauncher):
    """`hydra/launcher=slurm`: see `pgt.launch.slurm`, and conf/hydra/launcher/slurm.yaml for the options."""

    module = "slurm"
