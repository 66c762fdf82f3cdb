"""One run: in this process, in several that this one starts, or as one of torchrun's or srun's ranks."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

from pgt.config import sharing
from pgt.config.schema import Config
from pgt.core.errors import InputError, RankZeroError, Stopped, TrainingError, expected
from pgt.core.streams import endure
from pgt.launch.ranks import start_ranks
from pgt.runs.folder import Summary
from pgt.training.job import prepare


def run(config: Config, label: str = "") -> Summary:
    """Train one config on this machine; returns its summary.

    A run that has finished or diverged before is returned at once (unless `trainer.force`); an interrupted one resumes
    from its last checkpoint.

    Args:
        config: checked by `pgt.config.rules.validate`.
        label: printed in front of each message, as `[2/18]`.

    Raises:
        InputError: data, checkpoint, devices or folder cannot be used. The folder keeps what it has.
        TrainingError: the loss is no longer finite (the folder says so), or a rank has failed.
    """
    endure()
    job = prepare(config, label)
    if isinstance(job, Summary):
        return job
    from pgt.training import run as training

    training.give_back_memory()
    count = training.device_count(config)
    if count == 1:
        return training.train(job)
    summary: Summary = start_ranks(training.train_job_as_rank, job, count)
    return summary


def run_as_rank(compose: Callable[[], Config]) -> int:
    """Train one config as one of torchrun's or srun's ranks; returns the exit code.

    Args:
        compose: makes and checks the config. Rank 0 alone calls it.

    Raises:
        InputError, TrainingError: as `run`. An error that all ranks meet is raised by rank 0 alone.
    """
    from pgt.training import run as training

    endure()
    rank = int(os.environ["RANK"])

    def checked() -> Config:
        config = compose()
        sharing.check(config.recipe, int(os.environ["WORLD_SIZE"]))
        return config

    try:
        training.train_as_rank(checked)
    except (RankZeroError, Stopped) as error:
        if rank == 0:
            raise
        return error.exit_code
    except Exception as error:
        if rank == 0:
            raise
        raise _named(error, rank) from error
    return 0


def _named(error: Exception, rank: int) -> Exception:
    """The error of a later rank in one line that names the rank; the error itself if no log has its traceback."""
    known = expected(error)
    if isinstance(known, (InputError, TrainingError)):
        return type(known)(f"rank {rank}: {known}")
    if not hasattr(error, "__notes__"):
        return error
    reason = "".join(traceback.format_exception_only(error)).splitlines()[0]
    return TrainingError("; ".join([f"rank {rank}: failed ({reason})", *error.__notes__]))
