"""Functions and classes of the user's own, named in a config by `_target_`: found, checked, called, named in errors."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pgt.config.schema import Config, Own
from pgt.core.errors import InputError, expected, one_line
from pgt.core.own import check_arguments, located
from pgt.core.registry import TIMM


def parts(config: Config) -> dict[str, Own]:
    """The parts of a config that name something of the user's own, by their keys."""
    named: dict[str, object] = {"model": config.model, "method.loss": config.method.loss}
    named |= {f"method.transforms.{index}": part for index, part in enumerate(config.method.transforms)}
    return {key: part for key, part in named.items() if isinstance(part, Own)}


def check(config: Config) -> None:
    """Refuse a timm network that does not exist, and functions that cannot be found or do not take their arguments.

    Nothing is called.

    Raises:
        InputError: one of these is the case.
    """
    if config.model.name.startswith(TIMM):
        from pgt.models.timm_networks import facts  # imports torch, as the functions of the user's own will

        facts(config.model.name)
    for key, part in parts(config).items():
        function = located(key, part.name)
        given: dict[str, Any] = {
            name: value for name, value in part.arguments.items() if not (name.startswith("_") and name.endswith("_"))
        }  # without the keys of Hydra's own `instantiate`, such as `_convert_`
        if key == "model":
            given["num_classes"] = 0
        places = () if key == "model" or inspect.isclass(function) else (None, None)
        check_arguments(key, part.name, places, given)


def make(key: str, part: Own, **more: Any) -> Any:
    """Make what a part of a config names: Hydra calls a class with its arguments, and a function only if it is a model.

    Args:
        key: of the part.
        more: arguments of a model that the config does not give.

    Returns:
        What a class or a model's function returns; of other functions a `functools.partial` with their arguments.

    Raises:
        InputError: it cannot be found, or raises an exception.
    """
    from hydra.errors import InstantiationException  # takes half a second, which other runs save
    from hydra.utils import instantiate

    partial = not (more or inspect.isclass(located(key, part.name)))
    spelled = {"_convert_": "all", **part.arguments, "_target_": part.name, "_partial_": partial}
    try:
        made = instantiate(spelled, **more)
    except InstantiationException as error:
        raise _failed(key, part, error.__cause__ or error) from error
    if not callable(made):
        raise InputError(f"{key} ({part.name}) must make something that can be called, not {type(made).__name__}")
    return made


@contextmanager
def explained(config: Config) -> Iterator[None]:
    """Turn an exception from code of the user's own into one line that names its key, its file and the line there.

    Raises:
        InputError: such an exception.
    """
    try:
        yield
    except Exception as error:
        if expected(error) is None:
            for name_too in (True, False):  # several functions may be in one file
                for key, part in parts(config).items():
                    if _place(error, part, name_too):
                        raise _failed(key, part, error) from error
        raise


def _failed(key: str, part: Own, error: BaseException) -> InputError:
    return InputError(f"{key} ({part.name}) failed: {type(error).__name__}: {one_line(error)}{_place(error, part)}")


def _place(error: BaseException, part: Own, name_too: bool = False) -> str:
    """The last line in the file of a function or class that led to an exception: ` (FILE, line 7)`; or nothing.

    Args:
        name_too: only lines within the function or class itself.
    """
    function = located("", part.name)
    try:
        file = inspect.getfile(function)
    except TypeError:  # it is not written in Python
        return ""
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == file
        and (not name_too or frame.f_code.co_qualname.split(".")[0] == function.__name__)
    ]
    return f" ({file}, line {lines[-1]})" if lines else ""
