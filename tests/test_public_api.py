"""What users rely on changes only on purpose: tests/public_api.txt lists it.

`python -m tests.test_public_api` writes the list anew.
"""

import argparse
import inspect
from importlib import import_module

import pgt
from pgt.cli.commands import COMMANDS
from tests.conftest import ROOT

LIST = ROOT / "tests" / "public_api.txt"
CHANGED = f"""the public API has changed. If that is meant:
  1. python -m tests.test_public_api, and look at the difference of {LIST.relative_to(ROOT)};
  2. a line in CHANGELOG.md, which says what users have to change;
  3. by semantic versioning, what is added makes the next version a minor one, and what is changed or removed a major
     one; before 1.0.0 both make it a minor one."""


def signatures(module, name):
    """A line for a function; for a class, lines for its constructor and for the public methods that pgt defines."""
    value = getattr(import_module(module), name)
    yield f"{module}.{name}{inspect.signature(value)}"
    if inspect.isclass(value):
        for method, function in inspect.getmembers(value, inspect.isfunction):
            if function.__module__.startswith("pgt.") and (method == "__call__" or not method.startswith("_")):
                yield f"{module}.{name}.{method}{inspect.signature(function)}"


def options(name):
    """A line with a command's arguments and options."""
    parser = argparse.ArgumentParser(add_help=False)
    COMMANDS[name].options(parser)
    shown = ["/".join(action.option_strings) or action.dest for action in parser._actions]
    return " ".join(["pgt", name, *shown])


def public():
    modules = {"pgt": pgt.__all__, "pgt.runs": import_module("pgt.runs").__all__, "pgt.runs.norms": ["read_norms"]}
    lines = [line for module, names in modules.items() for name in names for line in signatures(module, name)]
    return [*lines, *map(options, COMMANDS)]


def test_the_public_api_changes_only_on_purpose():
    before, now = LIST.read_text().splitlines(), public()
    differ = [f"- {line}" for line in before if line not in now] + [f"+ {line}" for line in now if line not in before]
    assert before == now, "\n".join([CHANGED, *differ])


def test_the_changelog_has_a_section_for_this_version():
    assert f"\n## {pgt.__version__} " in (ROOT / "CHANGELOG.md").read_text()


if __name__ == "__main__":
    LIST.write_text("\n".join(public()) + "\n")
