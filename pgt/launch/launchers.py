"""The launchers that pgt adds to Hydra: `hydra/launcher=local` and `hydra/launcher=slurm`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pgt.config.compose import compose_job
from pgt.config.grammar import key_of
from pgt.config.identity import identity
from pgt.config.launchers import hydra_overrides
from pgt.core.errors import InputError
from pgt.launch import local, slurm
from pgt.launch.one_job import LaunchedJob, Sweep, label, refused, worst_if_nan
from pgt.runs.sweeps import write_list
from pgt.training.job import folder_of


def register() -> None:
    """Make the launchers known to Hydra, beside those of installed plugins."""
    plugins = Plugins.instance()
    for launcher in (LocalLauncher, SlurmLauncher):
        plugins.register(launcher)
        # Hydra looks up the `_target_` of a config here, and refuses names that do not begin like this.
        plugins.class_name_to_class[f"hydra_plugins.pgt.{launcher.__name__}"] = launcher


class LocalLauncher(Launcher):
    """`hydra/launcher=local`: `launch` of `pgt.launch.local`, with the options of conf/hydra/launcher/local.yaml."""

    train_or_submit = staticmethod(local.launch)

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config = config
        self._sweep: Sweep = task_function.keywords["sweep"]  # type: ignore[attr-defined]  # a partial of `jobs.task`

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train or submit the jobs that a sweeper asks for; returns their objectives.

        A job whose config is wrong, or whose data cannot be used, does not stop the others.

        Raises:
            InputError: an option does not fit.
        """
        sweep = Path(self._config.hydra.sweep.dir)
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        jobs, objectives = list[LaunchedJob](), dict[int, float]()
        # Without them, a job's config would lack the launcher whose options an experiment's file sets.
        shared = [text for text in hydra_overrides(self._config) if key_of(text) != "hydra.searchpath"]
        for number, overrides in zip(numbers, job_overrides, strict=True):
            name = label(number, self._sweep.total)
            try:
                config = compose_job([*shared, *overrides])
                (sweep / str(number)).unlink(missing_ok=True)  # the last time, it may have been refused
                jobs.append(LaunchedJob(number, name, config, folder_of(config), self._sweep.command))
            except (InputError, OSError) as error:
                objectives[number] = refused(sweep, number, name, error)
        write_list(sweep, self._sweep.command, {job.folder: identity(job.config) for job in jobs})
        found = self.train_or_submit(jobs, sweep, **self._options) if jobs else []
        objectives |= zip((job.number for job in jobs), found, strict=True)
        return [
            JobReturn(_return_value=worst_if_nan(objectives[number]), status=JobStatus.COMPLETED) for number in numbers
        ]


class SlurmLauncher(LocalLauncher):
    """`hydra/launcher=slurm`: `launch` of `pgt.launch.slurm`, with the options of conf/hydra/launcher/slurm.yaml."""

    train_or_submit = staticmethod(slurm.launch)  # type: ignore[assignment]  # of other options
