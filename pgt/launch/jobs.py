"""The jobs of a command line: all of them are composed and checked, then Hydra calls `task` for each."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial, update_wrapper
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pgt import data
from pgt.config.compose import Jobs, compose_all, compose_jobs, instead_of_flag, searched_folders, shown
from pgt.config.grammar import key_of, written
from pgt.config.resources import own_conf, search_path, sources
from pgt.config.rules import check_size, validate
from pgt.config.schema import Config
from pgt.core.errors import InputError, exit_code, one_line, unset_variable
from pgt.core.machine import rank_environment
from pgt.core.signals import Stop
from pgt.launch import launchers
from pgt.launch.one_job import Sweep, code_in, ended, label, note, objective, refused, train_job, worst_if_nan
from pgt.launch.run import run, run_as_rank
from pgt.runs import mirrors
from pgt.runs.folder import LOCK, lock, read_failure
from pgt.runs.sweeps import LIST, claim, link, new_sweep, runs_of
from pgt.training import own
from pgt.training.job import data_options, folder_of, listing_once, open_data

_folders: dict[str, Path] = {}
"""Run folders by config, of the runs that this process has trained: `folder_of` would list the data again."""


def train(arguments: Sequence[str]) -> int:
    """Run `pgt train`; returns the exit code.

    A job of a sweep that fails while it trains does not stop the others.

    Raises:
        InputError: the config of any job is wrong; nothing has been written.
    """
    options = parse(arguments)
    with own_files(options):
        if shows := showing(options):
            return _show(shows, options)
        environment = rank_environment(os.environ)
        if environment is None:
            return train_all(compose_jobs(options.overrides, options.multirun), options.multirun)
        os.environ |= environment
        return run_as_rank(lambda: _compose_one(options.overrides, options.multirun))


def own_files(options: Namespace) -> AbstractContextManager[None]:
    """A context in which the configs and modules of the user's own are found that a command line names."""
    first = [options.config_dir] if options.config_dir else []
    return own_conf([*first, *searched_folders(options.overrides)], options.config_name)


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse a command line by Hydra's own parser: its flags are ours.

    Raises:
        InputError: no words, an unknown flag, or one without its value.
    """
    if not arguments:
        raise InputError(
            "say what to train: `pgt train experiment=demo/bn` takes seconds, `pgt train --help` says more"
        )

    def refuse(message: str) -> NoReturn:
        for flag, following in zip(arguments, [*arguments[1:], ""], strict=True):
            if flag.startswith("--") and flag in message.split() and (meant := instead_of_flag(flag, following)):
                message = f"there is no option {flag}, write {meant}"
        raise InputError(f"{message}: see `pgt train --help`")

    parser = get_args_parser()
    parser.allow_abbrev = False
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


@listing_once()
def train_all(jobs: Jobs, multirun: bool, more: Mapping[str, str] = {}) -> int:
    """Train the jobs of a command line; returns the exit code.

    Args:
        more: overrides for Hydra, of keys that the command line does not set.

    Raises:
        InputError: data or loggers are not there, or options do not go together; nothing has been written.
    """
    _check_all(jobs.configs)
    Stop.unanswered = 0
    options = jobs.hydra.launcher
    submits = jobs.on_slurm and not options.wait
    if submits and jobs.searches:
        raise InputError("a sweeper that chooses values needs results: add hydra.launcher.wait=true")
    flags = ["-m"] if multirun else []
    sweep = Sweep(_count(jobs), ["pgt train", *flags, *jobs.command])
    if jobs.on_slurm:
        flags = ["-m"]  # otherwise Hydra would not call the launcher for a single run
    given = {key_of(text) for text in jobs.overrides}
    named = _named_folder(jobs.hydra, "hydra.sweep.dir" in given) if flags else None
    if named and not _in_turn(jobs.hydra):
        claim(named, sweep.command)
    with _hydra_folder(jobs) as notes:
        folder = named or notes
        settings = {**more, "hydra.run.dir": str(notes)}
        if "direction" in jobs.hydra.sweeper:
            settings["hydra.sweeper.direction"] = "maximize"  # the objective is an accuracy
        added = [f"{key}={written(value)}" for key, value in settings.items() if key not in given]
        function = update_wrapper(partial(task, sweep=sweep), task)
        place = f"hydra.sweep.dir={written(str(folder))}"  # the last one of a key counts
        _hydra("pgt train", [*flags, *added, *jobs.overrides, place], function)
        if submits or (flags and jobs.searches):  # without -m, Hydra calls no sweeper
            found = runs_of(folder)
            codes = [code_in(found[number]) for number in sorted(found)]  # of a submission, those that were refused
            return max(codes, default=0) if submits else _exit_code(codes)
    if _in_turn(jobs.hydra):
        _train_postponed(jobs.configs)
    return _exit_code([_code_of(config) for config in jobs.configs])


def _count(jobs: Jobs) -> int | None:
    """The number of jobs that a command line will have, if it is known before they begin."""
    if not jobs.searches:
        return len(jobs.configs)
    grid = jobs.hydra.runtime.choices.get("hydra/sweeper/sampler") == "grid"  # may have fewer points than `n_trials`
    return None if grid else jobs.hydra.sweeper.get("n_trials")


def _in_turn(settings: HydraConf) -> bool:
    """Whether Hydra's own launcher and sweeper train the jobs one after the other in this process."""
    chosen = settings.runtime.choices
    return bool(chosen["hydra/launcher"] == chosen["hydra/sweeper"] == "basic")


def _named_folder(settings: HydraConf, given: bool) -> Path | None:
    """The folder that the user has named by `hydra.sweep.dir`, on the command line (`given`) or in a file, or None.

    It is resolved once, here: when Hydra composes its own config some seconds later, `${now:...}` is another time.

    Raises:
        InputError: it cannot be resolved.
    """
    raw = cast(dict[str, Any], OmegaConf.to_container(cast(DictConfig, settings.sweep)))["dir"]
    unnamed = {".", "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}"}  # of conf/train.yaml, and of Hydra without that file
    if raw in unnamed and not given:
        return None
    try:
        return Path(settings.sweep.dir)
    except OmegaConfBaseException as error:
        unset = unset_variable(error)
        mend = f"export {unset}=..." if unset else one_line(error)
        raise InputError(f"hydra.sweep.dir={raw} cannot be resolved: {mend}") from None


@contextmanager
def _hydra_folder(jobs: Jobs) -> Iterator[Path]:
    """A folder for what Hydra, its launchers and its sweepers write.

    It is a temporary one if jobs train in turn in this process, since their run folders say more. Other launchers and
    sweepers leave logs and results there, and may need to reach it from other machines. It is locked while this process
    starts jobs: so `pgt status` knows whether more are to come.
    """
    if _in_turn(jobs.hydra):
        with TemporaryDirectory(prefix="pgt-") as temporary:
            yield Path(temporary)
    else:
        folder = new_sweep(Path(jobs.configs[0].paths.runs))
        try:
            with lock(folder):
                yield folder
        finally:
            if {path.name for path in folder.iterdir()} <= {"multirun.yaml", LIST, LOCK}:  # no job has begun
                rmtree(folder)


def _train_postponed(configs: Sequence[Config]) -> None:
    """Train the runs of a sweep that were put off because other processes were training them.

    Those are the runs that have begun, and have neither ended nor failed.
    """
    for number, config in enumerate(configs):
        with suppress(InputError, OSError), listing_once():  # the exit code counts it
            folder = known_folder(config)
            if folder.is_dir() and not ended(folder) and read_failure(folder) is None:
                train_job(config, folder, label(number, len(configs)), waits=True)


def known_folder(config: Config) -> Path:
    """`folder_of`, without listing the data again if this process has trained the run."""
    return _folders.get(repr(config)) or folder_of(config)


class _Failed(BaseException):
    """The error of the only job, on its way through Hydra, which would print lines of its own about an Exception."""


def task(composed: DictConfig, sweep: Sweep) -> float:
    """Train one job. Hydra calls it, in this process or in another one, whatever its launcher and sweeper are.

    Returns:
        The best test top-1 in percent, which a sweeper may optimise; 0 if the job of a sweep has failed, if its run is
        put off, or if it is refused, as values may be that a sweeper combines.

    Raises:
        InputError, TrainingError: as `run`, if the job is the only one of the command line.
    """
    settings = HydraConfig.get()
    sys.argv = sweep.command
    if settings.mode != RunMode.MULTIRUN:
        folder: Path | None = None
        try:
            config = validate(composed)
            folder = _folders[repr(config)] = folder_of(config)
            return objective(run(config))
        except Exception as error:
            if folder is not None and folder.is_dir():  # bad input makes none
                note(folder, error, sys.argv)
            raise _Failed(error) from None
    name, in_turn = label(settings.job.num, sweep.total), _in_turn(settings)
    with listing_once():
        try:
            config = validate(composed)
            folder = _folders[repr(config)] = folder_of(config)
            if not in_turn:
                link(Path(settings.sweep.dir), settings.job.num, folder)
        except Exception as error:
            return worst_if_nan(refused(Path(settings.sweep.dir), settings.job.num, name, error))
        return worst_if_nan(train_job(config, folder, name, waits=not in_turn))


def _exit_code(codes: Sequence[int]) -> int:
    """The exit code of a sweep whose runs have ended; prints how many of them have failed."""
    failed = sum(code != 0 for code in codes)
    if failed and len(codes) > 1:
        print(f"pgt: {failed} of {len(codes)} runs failed", file=sys.stderr)
    return max(codes, default=0)


def _code_of(config: Config) -> int:
    """The exit code of a job, read from its run's folder."""
    try:
        return code_in(known_folder(config))
    except (InputError, OSError) as error:  # the data are gone; the job has said so
        return exit_code(error)


def _show(flags: Sequence[str], options: Namespace) -> int:
    """Let Hydra print what flags ask for."""
    if options.package and not options.cfg:
        raise InputError("--package shows a part of a config: add --cfg job or --cfg hydra")
    if options.multirun:
        raise InputError(
            f"{flags[0]} shows one job: leave out -m, and give each swept key one value (`pgt plan` lists the runs)"
        )
    completes = options.shell_completion  # its words `install=bash` and the like are no overrides
    try:
        _hydra("pgt", [*flags, *(options.overrides if completes else shown(options.overrides))], lambda config: None)
    except SystemExit as left:  # Hydra has said why
        return InputError.exit_code if left.code else 0
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
            f"trainer.devices={wanted}, but torchrun or srun has started {started} on this machine: leave it out"
        )
    check(config)
    return config


def check(config: Config) -> None:
    """Raise InputError if the config's data, loggers, or functions of the user's own are plainly not there."""
    check_size(config)
    own.check(config)
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
        for config in {repr(data_options(config)): config for config in configs}.values():
            open_data(config)


def _hydra(program: str, arguments: Sequence[str], function: Callable[[DictConfig], Any]) -> None:
    """Let Hydra call the function with the config of each job.

    Raises:
        InputError: Hydra refuses the command line.
    """
    launchers.register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints errors and exits, also if a reader has left
    sys.argv = [program, *arguments]
    where = {"config_path": str(search_path()[0]), "config_name": sources().primary}
    try:
        hydra.main(version_base="1.3", **where)(function)()
    except _Failed as failure:
        error = failure.args[0]
        raise error from error.__cause__
    except (HydraException, ValueError) as error:
        unset = unset_variable(error)
        mend = f"; export {unset}=..., or give the key another value" if unset else ""
        raise InputError(f"{one_line(error)}{mend}") from None
