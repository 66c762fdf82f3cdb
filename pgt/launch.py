"""The parent of a command line's runs: checks every job first, then lets Hydra go through them."""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from pgt import data
from pgt.compose import check_shown, compose_all, conf_dir
from pgt.errors import InputError, TrainingError, as_input_error
from pgt.validate import validate

if TYPE_CHECKING:
    from omegaconf import DictConfig

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
        check_shown([override for override in overrides if "=" in override])
        _hydra(arguments, lambda config: None)
        return 0
    configs = compose_all(overrides, multirun)
    for config in configs:
        data.check(**asdict(config.data))
    total = len(configs)
    failures: list[InputError | TrainingError] = []
    started = itertools.count(1)

    def job(composed: DictConfig) -> None:
        from pgt.run import run

        label = f"[{next(started)}/{total}] " if total > 1 else ""
        try:
            run(validate(composed), label)
        except (InputError, TrainingError, OSError) as error:
            failure = as_input_error(error) if isinstance(error, OSError) else error
            failures.append(failure)
            print(f"pgt: {label}{failure}", file=sys.stderr)
        except Exception as error:  # a fault of one run must not cost the others of a night
            failures.append(TrainingError(str(error)))
            traceback.print_exc()

    _hydra(arguments, job)
    if failures and total > 1:
        print(f"pgt: {len(failures)} of {total} runs failed", file=sys.stderr)
    return max((failure.exit_code for failure in failures), default=0)


def _hydra(arguments: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    import hydra

    sys.argv = ["pgt train", *arguments]
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
