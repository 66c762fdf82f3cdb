"""Findings of `pgt doctor`, and the checks that yield them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pgt.core.errors import InputError, as_input_error

OK, NOTE, BAD = "ok", "note", "bad"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        level: `ok`, `note` (worth knowing) or `bad`.
        text: what was found; if it is bad, it ends with a remedy.
    """

    level: str
    text: str


Check = Callable[[], Iterator[Finding]]


def judged(good: bool, text: str, mend: str) -> Finding:
    """Return an `ok` finding of this text, or a `bad` one with the remedy `mend` after it."""
    return Finding(OK, text) if good else Finding(BAD, f"{text}: {mend}")


def made(check: Check) -> Iterator[Finding]:
    """Yield the findings of a check; an error that it raises becomes a `bad` one."""
    try:
        yield from check()
    except (InputError, OSError) as error:
        yield Finding(BAD, str(as_input_error(error)))
    except Exception as error:  # a broken installation may raise anything
        first = (str(error) or "no reason given").strip().splitlines()[0]
        yield Finding(BAD, f"{type(error).__name__}: {first}")
