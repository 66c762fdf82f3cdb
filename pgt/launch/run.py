"""One run on this machine: in this process, or in several that train together."""

from __future__ import annotations

import gc

from pgt.config import sharing
from pgt.config.schema import Config
from pgt.core.errors import InputError
from pgt.core.machine import Place
from pgt.launch import workers
from pgt.runs.folder import Summary
from pgt.training.run import Job, prepare, train


def run(config: Config, label: str = "") -> Summary:
    """Train one config on this machine, or return what it came to before.

    A finished or diverged run is returned at once (unless `trainer.force`); an interrupted one goes on from
    its last checkpoint.

    Args:
        config: checked by `pgt.validate`.
        label: in front of what is printed, as `[2/18]`.

    Raises:
        InputError: data, checkpoint, devices or folder cannot be used. What a run had come to is kept.
        TrainingError: the loss is no longer finite (the folder says so), or a process has failed.
    """
    job = prepare(config, label)
    if isinstance(job, Summary):
        return job
    count = devices(config)
    if count == 1:
        from pgt.training.ranks import ALONE

        try:
            return train(job, ALONE)
        finally:
            _release()
    from pgt.training.ranks import lost

    job.folder.mkdir(parents=True, exist_ok=True)
    summary: Summary = workers.run_all(train_in_place, job, count, job.folder, lost)
    return summary


def devices(config: Config) -> int:
    """How many processes train a config here: `trainer.devices`, or every GPU that its batch can be shared by.

    Raises:
        InputError: there are fewer GPUs, or torch cannot use them.
    """
    from pgt.training.ranks import visible_gpus

    available, wanted = visible_gpus(), config.trainer.devices
    if wanted is None:
        return sharing.largest(config.recipe, available)
    if available and wanted > available:
        raise InputError(f"trainer.devices={wanted}, but {available} GPUs are visible")
    return wanted


def _release() -> None:
    """Give back what a run held of the GPU: the next one may train in other processes."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def train_in_place(job: Job, place: Place) -> Summary:
    """`train` as one of the processes that `run` starts."""
    from pgt.training.ranks import joined, meet

    with joined(place, meet(place), job.config.trainer.timeout_minutes) as ranks:
        return train(job, ranks)
