"""Hydra's grammar of overrides: `key=value`, sweeps over several values, quotes."""

from __future__ import annotations

import json
import os
import re
import shlex
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.errors import HydraException

from pgt.config.resources import choices, groups, is_folder, is_group
from pgt.core.errors import InputError


@cache
def parse(text: str) -> Override:
    """An override, parsed.

    Raises:
        InputError: it does not fit the grammar; the message shows the quotes that its value needs.
    """
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException:
        raise InputError(f"cannot read the override '{text}': {_mend(text)}") from None
    if not parsed.key_or_group:
        raise InputError(f"cannot read the override '{text}': write key=value, without spaces around =")
    return parsed


def _mend(text: str) -> str:
    """Advice on how to write a word that is no override."""
    if re.match(r"[^=]+=(\{|\[\s*[\[{])", text):
        return "write quotes around each text in it, as in {name: 'a b'}"
    if "=" in text.strip("="):
        words = re.split(r"\s+(?=[+~]{0,2}[\w./@]+=)", text)
        several = f"for {len(words)} overrides write {' '.join(words)} as {len(words)} words; for one "
        return f"{several if len(words) > 1 else ''}write {quoted(text)}"
    folder = text.removesuffix("/").removesuffix("/all")
    found = [f"-m experiment={folder}/all"] if is_folder("experiment", folder) else []
    found += [f"{group}={text}" for group in groups() if text in choices(group)]
    if is_group(text):
        found.append(f"{text}=NAME")
    return f"write {' or '.join(found) or 'key=value'}, without spaces around ="


def quoted(text: str) -> str:
    """The override with its value, or each element of a list, in quotes, for the grammar and for a shell."""
    key, equals, value = text.partition("=")
    if not (equals and re.fullmatch(r"[+~]{0,2}[\w./@-]+", key)):
        return "key=value"
    single, double = (f"{key}={_in_quotes(value, quote)}" for quote in (Quote.single, Quote.double))
    if not set(value) & {*"\"$`\\!'"}:
        return f'"{single}"'
    return shlex.quote(single) if "'" in value else f"'{double}'"


def _in_quotes(value: str, quote: Quote) -> str:
    if re.fullmatch(r"\[[^\[\]]*\]", value):
        elements = re.findall(r"""(?:"[^"]*"|'[^']*'|[^,])+""", value[1:-1])
        return f"[{','.join(_in_quotes(_bare(element), quote) for element in elements)}]"
    return QuotedString(os.path.expanduser(value), quote).with_quotes()


def _bare(element: str) -> str:
    """An element of a list without the quotes that it has already."""
    found = re.fullmatch(r"""\s*(["']?)(.*?)\1\s*""", element, re.DOTALL)
    return found[2] if found else element


def key_of(text: str) -> str:
    """The key or group that an override sets, without the package that a group is put into."""
    return parse(text).key_or_group


def values_of(override: Override) -> list[Any]:
    """The values that an override gives to its key: one, or those of a sweep.

    Raises:
        InputError: a sweep that is not finite, or a `glob` that no choice fits.
    """
    glob = override.value()
    if isinstance(glob, Glob):
        found = glob.filter(choices(override.key_or_group)) if is_group(override.key_or_group) else []
        if not found:
            raise InputError(f"'{override.input_line}' fits no choice: glob goes with a group, as in method=glob(gc*)")
        return found
    if not override.is_sweep_override():
        return [glob]
    if not override.is_discrete_sweep():
        example = f"{override.get_key_element()}=0.1,0.2"
        raise InputError(f"'{override.input_line}' is no finite sweep: name the values, as in {example}")
    return [value.text if isinstance(value, QuotedString) else value for value in override.sweep_iterator()]


def written(value: Any) -> str:
    """A plain value as the grammar reads it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    plain = re.fullmatch(r"[\w./+-]+", value, re.ASCII) and parse(f"key={value}").value() == value
    return value if plain else QuotedString(value, Quote.single).with_quotes()
