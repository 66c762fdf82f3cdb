"""The ways in which a command ends on purpose before it is done."""

import re
import signal
import sys
from collections.abc import Callable


class InputError(Exception):
    """The config, the data, a checkpoint or the environment cannot be used; one line says how to mend it."""

    exit_code = 2


def as_input_error(error: InputError | OSError) -> InputError:
    """The error of a file that cannot be read or written, as one line."""
    if isinstance(error, InputError):
        return error
    where = f"{error.filename}: " if error.filename else ""
    return InputError(f"{where}{error.strerror or error}")


class HeldError(InputError):
    """Another process is training this run; the message names that process."""


class TrainingError(Exception):
    """The run itself went wrong (for example, the loss is no longer finite); one line says where."""

    exit_code = 1


class LostRankError(TrainingError):
    """Another rank no longer answers. The cause is that rank's, and only that rank can name it."""


class RankZeroError(Exception):
    """Rank 0 cannot start the run, and reports why. The other ranks end with its exit code and print nothing.

    Args:
        exit_code: of rank 0.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return "ended because rank 0 could not start the run"


class Stopped(KeyboardInterrupt):
    """Training was asked to stop and has saved everything; the same command continues there.

    Args:
        number: of the signal that asked.
        place: how far training is.
    """

    def __init__(self, number: int, place: str) -> None:
        super().__init__(number, place)
        self.number, self.place = number, place

    def __str__(self) -> str:
        by = "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name
        return f"stopped by {by} {self.place}; the same command goes on there"

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as shells report it: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1."""
        return 128 + self.number


def without_framework(error: ModuleNotFoundError) -> InputError | None:
    """An InputError that says to install `powergrad[train]`, if a package of that extra is missing; otherwise None."""
    from importlib.metadata import Distribution, PackageNotFoundError

    try:
        needed = Distribution.from_name("powergrad").requires or ()
    except PackageNotFoundError:  # a checkout that was not installed
        return None
    for package in needed:
        name, _, marker = package.partition(";")
        try:
            if re.search(r"extra == .train\b", marker):
                Distribution.from_name(re.split(r"[^\w.-]", name)[0])
        except PackageNotFoundError:
            return InputError(
                f"this needs more than torch (no {error.name} here): pip install 'powergrad[train]', or '.[train]' in "
                "a checkout"
            )
    return None


def expected(error: BaseException) -> InputError | TrainingError | RankZeroError | Stopped | None:
    """The error as one of ours, with one line of text and an exit code; None for any other error, which is a bug."""
    if isinstance(error, ModuleNotFoundError):
        return without_framework(error)
    if isinstance(error, OSError):
        return as_input_error(error)
    return error if isinstance(error, (InputError, TrainingError, RankZeroError, Stopped)) else None


def exit_code(error: BaseException) -> int:
    """The exit code of a command that ends with this exception."""
    known = expected(error)
    if known is None and isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return known.exit_code if known else 1


def memory_is_full(error: RuntimeError) -> bool:
    """Whether an error of torch, CUDA or DALI says that the memory of a device is full."""
    return bool(re.search(r"out of memory|can't allocate \d+ bytes on device|ALLOC_FAILED", str(error), re.IGNORECASE))


def unset_variable(error: Exception) -> str | None:
    """The name of the environment variable that OmegaConf has not found; None if it complains of something else."""
    found = re.search(r"Environment variable '(\w+)' not found", str(error))
    return found and found[1]


def one_line(error: BaseException) -> str:
    """The text of an exception in one line."""
    return " ".join(str(error).split())


def run_script(program: str, work: Callable[[], str], again: str) -> int:
    """Do a script's work and print what it returns, or in one line why it ended; returns the exit code.

    Args:
        again: what the same command does after a Ctrl-C: `goes on`, `starts again`.
    """
    try:
        print(work())
    except (InputError, OSError) as error:
        print(f"{program}: {as_input_error(error)}", file=sys.stderr)
        return InputError.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command {again}", file=sys.stderr)
        return 130
    return 0
