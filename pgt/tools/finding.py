"""What a check of the machine has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pgt.core.errors import InputError, as_input_error

OK, NOTE, BAD = "ok", "note", "bad"


@dataclass(frozen=True)
class Finding:
    """`ok`, `note` (worth knowing) or `bad`; the text of the latter ends with how to mend it."""

    level: str
    text: str


Check = Callable[[], Iterator[Finding]]


def judged(good: bool, text: str, mend: str) -> Finding:
    """`text` where all is well; where not, followed by how to mend it."""
    return Finding(OK, text) if good else Finding(BAD, f"{text}: {mend}")


def made(check: Check) -> Iterator[Finding]:
    """The findings of a check; what it raises is one of them."""
    try:
        yield from check()
    except (InputError, OSError) as error:
        yield Finding(BAD, str(as_input_error(error)))
    except Exception as error:  # a broken installation raises anything
        first = (str(error) or "no reason given").strip().splitlines()[0]
        yield Finding(BAD, f"{type(error).__name__}: {first}")
