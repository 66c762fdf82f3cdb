"""The ways in which a command ends on purpose before it is done."""

import signal


class InputError(Exception):
    """What the user gave (config, data, checkpoint, environment) cannot work; one line says how to mend it."""

    exit_code = 2
    said = False
    """By another of the processes that run into it together."""


def as_input_error(error: InputError | OSError) -> InputError:
    """A file that cannot be read or written, in one line."""
    if isinstance(error, InputError):
        return error
    where = f"{error.filename}: " if error.filename else ""
    return InputError(f"{where}{error.strerror or error}")


class TrainingError(Exception):
    """The run itself went wrong (say, the loss is no longer finite); one line says where."""

    exit_code = 1


class Stopped(KeyboardInterrupt):
    """Training was asked to stop, has put everything away, and goes on where it was with the same command.

    Args:
        number: of the signal that asked.
        place: where training stands.
    """

    def __init__(self, number: int, place: str) -> None:
        super().__init__(number, place)
        self.number, self.place = number, place

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name} {self.place}; the same command goes on there"

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: 143 for SIGTERM, 138 for SIGUSR1."""
        return 128 + self.number
