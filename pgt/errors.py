"""The two ways in which a command ends badly on purpose."""


class InputError(Exception):
    """What the user gave (config, data, checkpoint, environment) cannot work; one line says how to mend it."""

    exit_code = 2
    said = False
    """By another of the processes that run into it together."""


def as_input_error(error: OSError) -> InputError:
    """A file that cannot be read or written, in one line."""
    where = f"{error.filename}: " if error.filename else ""
    return InputError(f"{where}{error.strerror or error}")


class TrainingError(Exception):
    """The run itself went wrong (say, the loss is no longer finite); one line says where."""

    exit_code = 1
