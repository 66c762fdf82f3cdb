"""`pgt.train`: what `pgt train` does, for a script or a notebook."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread
from types import ModuleType
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from pgt.config.compose import compose_jobs
from pgt.core.errors import InputError, TrainingError
from pgt.core.machine import rank_environment
from pgt.core.signals import STOP_SIGNALS
from pgt.launch import jobs
from pgt.runs.folder import FINISHED, read_summary
from pgt.runs.frame import row

QUIET = {"hydra/job_logging": "none", "hydra/hydra_logging": "none"}
"""Keeps Hydra from replacing and closing the logging handlers of the calling program."""


def train(arguments: Sequence[str]) -> Any:
    """Train what `pgt train` trains with the same words, and return its results.

    A run that is finished is returned at once, and an interrupted one resumes. Files, messages and data are found from
    the current folder, as on the command line.

    Args:
        arguments: the words after `pgt train`: `["experiment=demo/bn", "seed=1"]`. With `-m` among them, all runs of a
            sweep; `--config-dir` and `--config-name` as there.

    Returns:
        A dict: the run's row of `pgt.runs.frame`, for example `["test_top1_best"]`, `["run"]` (its folder) or
        `["recipe.epochs"]`. With `-m` a list of them in the order of the jobs, which `pandas.DataFrame` takes.

    Raises:
        InputError: the config, the data or a checkpoint cannot be used.
        TrainingError: the loss is no longer finite, or a process has failed; of a sweep, after all runs have ended.
        Stopped: Ctrl-C or SIGTERM; a KeyboardInterrupt. Everything is saved, and the same call goes on there.

    Examples:
        >>> pgt.train(["experiment=demo/bn", "seed=1"])["test_top1_best"]  # doctest: +SKIP
        >>> runs = pgt.train(["-m", "experiment=demo/bn", "method=baseline,pgt", "seed=0,1,2"])  # doctest: +SKIP
        >>> pandas.DataFrame(runs)  # doctest: +SKIP
    """
    if isinstance(arguments, str):
        raise InputError(f"pgt.train takes a list of words: pgt.train({arguments.split()})")
    if current_thread() is not main_thread():
        raise InputError("pgt.train is stopped by signals, which Python gives to the main thread: call it there")
    if rank_environment(os.environ) is not None:
        raise InputError("pgt.train starts its processes itself: run the script once, with trainer.devices=N")
    options = jobs.parse(arguments)
    if shows := jobs.showing(options):
        raise InputError(f"{shows[0]} trains nothing: give it to `pgt train` in a shell")
    with _left_as_found(arguments), jobs.own_files(options):
        composed = compose_jobs(options.overrides, options.multirun)
        if composed.searches or composed.on_slurm:
            raise InputError(
                "pgt.train trains here and returns what it came to: give a sweeper that chooses values, or jobs for a "
                "cluster, to `pgt train`, and read pgt.runs.frame"
            )
        code = jobs.train_all(composed, options.multirun, QUIET)
        found = [(folder, read_summary(folder)) for folder in map(jobs.known_folder, composed.configs)]
    if code and not options.multirun:  # errors of this call are raised above
        [(_, summary)] = found
        reason = summary.reason if summary is not None else "no summary"
        raise TrainingError(f"the run has diverged earlier ({reason}): trainer.force=true starts over")
    if code:
        failed = [str(folder) for folder, summary in found if summary is None or summary.status != FINISHED]
        kind = InputError if code == InputError.exit_code else TrainingError
        raise kind(f"{len(failed)} of {len(found)} runs failed ({', '.join(failed)}): what is printed above says why")
    rows = [row(folder, summary) for folder, summary in found if summary is not None]
    return rows if options.multirun else rows[0]


@contextmanager
def _left_as_found(arguments: Sequence[str]) -> Iterator[None]:
    """A context that afterwards leaves signal handlers, streams, environment, Hydra and torch as it found them.

    Within it, `__main__` is empty: the processes that multiprocessing starts would otherwise run the user's script
    again, unless it has the guard `if __name__ == "__main__"`.
    """
    import torch

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *STOP_SIGNALS)}
    variables, streams = dict(os.environ), (sys.stdout, sys.stderr)
    argv, path, main = sys.argv, list(sys.path), sys.modules["__main__"]
    hydra, its_config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    deterministic, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    sys.argv, sys.modules["__main__"] = ["pgt.train", *arguments], ModuleType("__main__")
    GlobalHydra.instance().clear()
    try:
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with _float32_precision_as_found(), torch.random.fork_rng(devices=gpus):
            yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = streams
        sys.argv, sys.path[:], sys.modules["__main__"] = argv, path, main
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, its_config
        os.environ.clear()
        os.environ.update(variables)
        if torch.get_deterministic_debug_mode() != deterministic:  # each call imports inductor, which takes seconds
            torch.set_deterministic_debug_mode(deterministic)
        torch.backends.cudnn.benchmark = benchmark
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _float32_precision_as_found() -> Iterator[None]:
    """A context that leaves torch's settings of TF32 as it found them, by whichever of their names they were set.

    torch refuses to read the older names once one of the newer ones has been set.
    """
    import torch

    cudnn_parts: Any = torch.backends.cudnn
    newer = (torch.backends.cuda.matmul, cudnn_parts.conv, cudnn_parts.rnn)
    precisions = [part.fp32_precision for part in newer]
    matmul = cudnn = None
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        for part, precision in zip(newer, precisions, strict=True):
            part.fp32_precision = precision
