"""The jobs of a command line: all of them are composed and checked, then Hydra calls `task` for each."""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from pgt import data
from pgt.config.compose import compose_all, compose_jobs, shown
from pgt.config.resources import own_conf, search_path, sources
from pgt.config.rules import check_size, validate
from pgt.config.schema import Config
from pgt.core.errors import HeldError, InputError, Stopped, TrainingError, exit_code, expected
from pgt.core.machine import rank_environment
from pgt.core.signals import Stop
from pgt.launch.run import run, run_as_rank
from pgt.runs import mirrors
from pgt.runs.folder import DIVERGED, FINISHED, Summary, held, holder, read_summary
from pgt.training.job import data_options, folder_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

JOBS = "PGT_JOBS"
"""The environment variable that tells `task` how many jobs the command line has."""
NOTES = "PGT_NOTES"
"""The environment variable that tells conf/train.yaml where Hydra may write of a sweep; the run folders say more."""

_codes: dict[str, int] = {}
"""Exit codes of the jobs that ran in this process, by config."""

_put_off: list[tuple[Config, str]] = []
"""The jobs of this process, with their labels, whose runs other processes were training when their turn came."""

POLL_SECONDS = 2.0
"""Time between two looks at a run that another process trains."""


def train(arguments: Sequence[str]) -> int:
    """Run `pgt train`; returns the exit code.

    A job of a sweep that fails while it trains does not stop the others.

    Raises:
        InputError: the config of any job is wrong; nothing has been written.
    """
    options = parse(arguments)
    with own_conf([options.config_dir] if options.config_dir else [], options.config_name):
        if shows := showing(options):
            return _show(shows, options)
        environment = rank_environment(os.environ)
        if environment is None:
            return _train_all(options.overrides, options.multirun)
        os.environ |= environment
        return run_as_rank(lambda: _compose_one(options.overrides, options.multirun))


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse a command line by Hydra's own parser: its flags are ours.

    Raises:
        InputError: no words, an unknown flag, or one without its value.
    """
    if not arguments:
        raise InputError(
            "say what to train: `pgt train experiment=demo/bn` takes seconds, `pgt train --help` says more"
        )
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}: see `pgt train --help`")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(arguments)
    if options.config_path or options.experimental_rerun:
        refuse("--config-path and --experimental-rerun are not for pgt; --config-dir adds configs of your own")
    return options


def showing(options: Namespace) -> list[str]:
    """The flags by which Hydra prints something and trains nothing."""
    flags = {name: getattr(options, name) for name in ("cfg", "info", "package", "resolve", "hydra_help")}
    words = [(f"--{name.replace('_', '-')}", value) for name, value in flags.items() if value]
    if options.shell_completion:
        words.append(("--shell-completion", True))
    return [word for name, value in words for word in ([name] if value is True else [name, value])]


def _train_all(overrides: Sequence[str], multirun: bool) -> int:
    jobs = compose_jobs(overrides, multirun)
    _check_all(jobs.configs)
    Stop.unanswered = 0
    _codes.clear()
    _put_off.clear()
    os.environ[JOBS] = str(len(jobs.configs))
    with TemporaryDirectory(prefix="pgt-") as notes:
        os.environ[NOTES] = notes
        _hydra("pgt train", [*(["-m"] if multirun else []), *jobs.overrides], task)
    if multirun:
        _share(jobs.configs)
    return _exit_code(jobs.configs)


def _share(configs: Sequence[Config]) -> None:
    """Wait for the runs of a sweep that other processes train, such as the same sweep beside this one.

    A run that this process has put off goes on here if it is left unfinished.
    """
    while _put_off:
        config, label = _put_off.pop(0)
        _wait(folder_of(config), label)
        _train(config, label)
    for config in configs:  # a launcher may have called `task` in processes that are gone
        if config.model_dump_json() not in _codes:
            _wait(folder_of(config), "")


def _wait(folder: Path, label: str) -> None:
    """Wait until no process holds a run's folder."""
    if process := holder(folder):
        print(f"{label}waits for {folder}, which another process trains ({process})", flush=True)
    while holder(folder):
        time.sleep(POLL_SECONDS)


def task(composed: DictConfig) -> float:
    """Train one job. Hydra calls it, whatever its launcher and sweeper are.

    Returns:
        The best test top-1 in percent, which a sweeper may optimise; NaN if the job has failed.
    """
    return _train(validate(composed), _label())


def _train(config: Config, label: str) -> float:
    """Train one job, as `task`. One job of a sweep whose run another process trains is put off."""
    if Stop.unanswered:
        raise Stopped(Stop.unanswered, "between two runs")
    try:
        if label and (process := holder(folder := folder_of(config))):
            raise held(folder, process)
        summary = run(config, label)
        _codes[config.model_dump_json()] = _code_of(summary)
        return math.nan if summary.status == DIVERGED or summary.test_top1_best is None else summary.test_top1_best
    except Exception as error:  # also a fault: it must not cost the other runs of a night
        if label and isinstance(error, HeldError):
            print(f"{label}comes last: {error}", flush=True)
            _put_off.append((config, label))
            return math.nan
        if known := expected(error):
            print(f"pgt: {label}{known}", file=sys.stderr)
        else:
            traceback.print_exc()
        _codes[config.model_dump_json()] = exit_code(error)
    return math.nan


def _label() -> str:
    """`[2/18] ` for the second of 18 jobs; empty for a single one."""
    from hydra.core.hydra_config import HydraConfig

    total = int(os.environ.get(JOBS, 1))
    return f"[{HydraConfig.get().job.num + 1}/{total}] " if total > 1 else ""


def _exit_code(configs: Sequence[Config]) -> int:
    """The exit code of the command after all jobs have ended; prints how many runs of a sweep have failed."""
    codes = []
    for config in configs:
        code = _codes.get(config.model_dump_json())
        codes.append(_code_in(folder_of(config)) if code is None else code)
    failed = sum(code != 0 for code in codes)
    if failed and len(codes) > 1:
        print(f"pgt: {failed} of {len(codes)} runs failed", file=sys.stderr)
    return max(codes)


def _code_in(folder: Path) -> int:
    """The exit code that a run folder tells of, if its run was trained by another process."""
    try:
        summary = read_summary(folder)
    except InputError as error:
        print(f"pgt: {error}", file=sys.stderr)
        return error.exit_code
    return _code_of(summary)


def _code_of(summary: Summary | None) -> int:
    """The exit code of a run: 0 if it has finished."""
    return 0 if summary is not None and summary.status == FINISHED else TrainingError.exit_code


def _show(flags: Sequence[str], options: Namespace) -> int:
    """Let Hydra print what flags ask for."""
    if options.multirun:
        raise InputError(
            f"{flags[0]} shows one job: leave out -m, and give each swept key one value (`pgt plan` lists the runs)"
        )
    completes = options.shell_completion  # its words `install=bash` and the like are no overrides
    _hydra("pgt", [*flags, *(options.overrides if completes else shown(options.overrides))], lambda config: None)
    return 0


def _compose_one(overrides: Sequence[str], multirun: bool) -> Config:
    """The checked config of the one run that torchrun's or srun's ranks train.

    Raises:
        InputError: it is wrong, or does not fit the processes that were started.
    """
    if multirun:
        raise InputError(
            "-m goes through runs one after the other, and torchrun or srun starts one run: give each its own "
            "command, or on one machine `pgt train -m ... trainer.devices=N` without them"
        )
    [config] = compose_all(overrides, False)
    wanted, started = config.trainer.devices, int(os.environ["LOCAL_WORLD_SIZE"])
    if wanted is not None and wanted != started:
        raise InputError(
            f"trainer.devices={wanted}, but {started} processes were started on this machine: leave it out"
        )
    check(config)
    return config


def check(config: Config) -> None:
    """Raise InputError if the config's data or loggers are plainly not there."""
    check_size(config)
    data.check(**config.data.model_dump())
    mirrors.check(config.logger.chosen())


def _check_all(configs: Sequence[Config]) -> None:
    """Check every config, and open each data set of a sweep once, before any job begins.

    Raises:
        InputError, OSError: data or loggers are not there, or the data are not what their name says.
    """
    for config in configs:
        check(config)
    if len(configs) > 1:
        for options in dict.fromkeys(tuple(data_options(config).items()) for config in configs):
            data.open_set(**dict(options))


def _hydra(program: str, arguments: Sequence[str], function: Callable[[DictConfig], Any]) -> None:
    """Let Hydra call the function with the config of each job.

    Raises:
        InputError: Hydra refuses the command line.
    """
    import hydra
    from hydra.errors import HydraException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints errors and exits, also if a reader has left
    sys.argv = [program, *arguments]
    where = {"config_path": str(search_path()[0]), "config_name": sources().primary}
    try:
        hydra.main(version_base="1.3", **where)(function)()
    except (HydraException, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from None
