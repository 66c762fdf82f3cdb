"""The parent of a command line's runs: checks every job first, then lets Hydra go through them."""

from __future__ import annotations

import io
import itertools
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pgt import data
from pgt.config.compose import check_shown, compose_all, spell_out
from pgt.config.resources import conf_dir
from pgt.config.rules import check_size, validate
from pgt.core.errors import InputError, Stopped, TrainingError, as_input_error
from pgt.core.machine import Place, found
from pgt.core.signals import Stop
from pgt.runs import mirrors
from pgt.runs.folder import DIVERGED

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pgt.config.schema import Config

SHOWING = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc")
BESIDE = ("--resolve", "--package", "-p", "--install", "--uninstall", "--query")
MULTIRUN = ("-m", "--multirun")


def train(arguments: Sequence[str]) -> int:
    """Run `pgt train`; returns the exit code.

    Every job of a sweep is composed and checked before Hydra writes anything. A job that fails while it
    trains does not stop the others.

    Raises:
        InputError: the config of any job is wrong.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    showing = any(argument.split("=")[0] in SHOWING for argument in arguments)
    multirun = any(argument in MULTIRUN for argument in arguments)
    known = SHOWING + MULTIRUN + (BESIDE if showing else ())
    for argument in arguments:
        if argument.startswith("-") and argument.split("=")[0] not in known:
            raise InputError(f"unknown option '{argument}': see `pgt train --help`")
    if not arguments:
        raise InputError(
            "say what to train: `pgt train experiment=demo/bn` takes seconds, `pgt train --help` says more"
        )
    if showing:
        overrides = spell_out([override for override in overrides if "=" in override], multirun)
        check_shown(overrides)
        with redirect_stdout(io.StringIO()) as shown:  # a reader that leaves early is a fault to Hydra
            _hydra([*(a for a in arguments if a.startswith("-") or "=" not in a), *overrides], lambda config: None)
        print(shown.getvalue(), end="")
        return 0
    place = found()
    if place is not None:
        return _as_rank(overrides, multirun, place)
    overrides = spell_out(overrides, multirun)
    configs = compose_all(overrides, multirun)
    _check_all(configs)
    total, Stop.unanswered = len(configs), 0
    failures: list[int] = []  # exit codes; an error would keep alive all that its traceback refers to
    started = itertools.count(1)

    def job(composed: DictConfig) -> None:
        from pgt.launch.run import run

        if Stop.unanswered:
            raise Stopped(Stop.unanswered, "between two runs")
        label = f"[{next(started)}/{total}] " if total > 1 else ""
        try:
            if run(validate(composed), label).status == DIVERGED:  # earlier: now it would have raised
                failures.append(TrainingError.exit_code)
        except (InputError, TrainingError, OSError) as error:
            failure = as_input_error(error) if isinstance(error, OSError) else error
            failures.append(failure.exit_code)
            print(f"pgt: {label}{failure}", file=sys.stderr)
        except Exception:  # a fault of one run must not cost the others of a night
            failures.append(TrainingError.exit_code)
            traceback.print_exc()

    _go_through(overrides, multirun, job)
    if failures and total > 1:
        print(f"pgt: {len(failures)} of {total} runs failed", file=sys.stderr)
    return max(failures, default=0)


def _as_rank(overrides: Sequence[str], multirun: bool, place: Place) -> int:
    """Train the one run of the command line as one of the processes that torchrun or srun has started."""
    from pgt.launch.rank import run_as_rank

    def compose() -> Config:
        if multirun:
            raise InputError(
                "-m goes through runs one after the other, and torchrun or srun starts one run: give each its own "
                "command, or on one machine `pgt train -m ... trainer.devices=N` without them"
            )
        [config] = compose_all(overrides, False)
        wanted = config.trainer.devices
        if wanted is not None and wanted != place.local_size:
            raise InputError(
                f"trainer.devices={wanted}, but {place.local_size} processes were started on this machine: leave it out"
            )
        _check(config)
        return config

    return run_as_rank(place, compose)


def _check(config: Config) -> None:
    """Raises InputError for what is plainly not there."""
    check_size(config)
    data.check(**config.data.model_dump())
    mirrors.check(config.logger.chosen())


def _check_all(configs: Sequence[Config]) -> None:
    """Raises InputError or OSError for what is plainly not there, and for data of a sweep that are not what they are
    called: once, and not in each run."""
    from pgt.training.run import data_options

    for config in configs:
        _check(config)
    if len(configs) > 1:
        for options in dict.fromkeys(tuple(data_options(config).items()) for config in configs):
            data.open_set(**dict(options))


def _go_through(overrides: Sequence[str], multirun: bool, job: Callable[[DictConfig], None]) -> None:
    """Let Hydra call `job` with the config of each run; what it notes of a sweep is kept by nobody."""
    if not multirun:
        _hydra(overrides, job)
        return
    with TemporaryDirectory(prefix="pgt-") as notes:
        quoted = notes.replace("'", "\\'")
        _hydra(["-m", f"hydra.sweep.dir='{quoted}'", *overrides], job)


def _hydra(arguments: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    import hydra

    sys.argv = ["pgt train", *arguments]
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
