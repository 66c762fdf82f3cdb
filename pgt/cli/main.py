"""The `pgt` command; each subcommand imports only what it needs."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO
from typing import Any, NoReturn

from pgt import __version__
from pgt.cli.commands import COMMANDS
from pgt.config.resources import choices, groups, is_group, own_conf
from pgt.core.errors import InputError, expected
from pgt.core.streams import READER_LEFT, show_all_characters, written_out

TRAIN_HELP = """usage: pgt train [-m] [override ...]

Train one run, or with -m every combination of the overrides' values.

  pgt train experiment=demo/bn                  an experiment, as its file in conf/experiment/ says
  pgt train -m experiment=demo/bn seed=0,1,2    three seeds of it
  pgt train model=resnet50 schedule=cosine method=pgt method.alpha=0.3 data=imagefolder data.root=DIR

`pgt list experiments` (models, methods, data, recipes, ...) says what there is to choose from.
The same command again returns a finished run at once and goes on with an interrupted one.

  --cfg job           print the composed config, train nothing
  --info defaults     print which groups it is made of
  --config-dir DIR    find experiments, methods, ... in DIR/experiment, DIR/method, ..., too
  --hydra-help        Hydra's other flags
  -sc install=bash    print what completes keys and choices in a shell: eval "$(pgt train -sc install=bash)"

groups: {groups}"""


OPTIONS = ("-h", "--help", "--version")
"""The options of `pgt` without a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 (a run failed), 2 (bad input), 130 (Ctrl-C),
    141 (nobody reads what it prints), or 143 or 138 (stopped by SIGTERM or SIGUSR1)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["train"]:
            return _train(arguments[1:])
        if arguments[:1] == ["-sc"]:
            return _complete(arguments)
        command = arguments[0] if arguments else ""
        made = parser(command)
        if command and not command.startswith("-") and command not in COMMANDS:
            nearest = difflib.get_close_matches(command, ["train", *COMMANDS], n=1)
            made.error(f"there is no command {command}" + (f": did you mean `pgt {nearest[0]}`?" if nearest else ""))
        if command.startswith("-") and command not in OPTIONS:
            nearest = difflib.get_close_matches(command, OPTIONS, n=1)
            made.error(f"there is no option {command}" + (f": did you mean {nearest[0]}?" if nearest else ""))
        if command not in COMMANDS:
            made.parse_args(arguments)  # --help, --version or nothing: argparse exits
        options = made.parse_intermixed_args(arguments[1:])  # an argument may stand behind an option
        with own_conf([options.config_dir] if getattr(options, "config_dir", None) else []):
            return COMMANDS[command].run(options) or 0
    except BrokenPipeError:  # of standard output: training runs deal with their own
        return READER_LEFT
    except (Exception, KeyboardInterrupt) as error:
        if known := expected(error):
            print(f"pgt: {known}", file=sys.stderr)
            return known.exit_code
        if not isinstance(error, KeyboardInterrupt):
            raise
        on = "; the same command goes on from its last checkpoint" if arguments[:1] == ["train"] else ""
        print(f"pgt: interrupted{on}", file=sys.stderr)
        return 130


class OneLine(argparse.ArgumentParser):
    """A parser that complains in one line; those of its commands do, too."""

    def error(self, message: str) -> NoReturn:
        self.exit(InputError.exit_code, f"pgt: {message}; see `{self.prog} --help`\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print. argparse would hide that standard output cannot be written."""
        if file is sys.stdout:
            print(message, end="")
        else:
            super()._print_message(message, file)


def parser(chosen: str) -> argparse.ArgumentParser:
    """The parser of the words after a command; or, if `chosen` is none, that of `pgt`.

    Only the chosen command gets its options: those of others may need slow imports.
    """
    if chosen in COMMANDS:
        made = OneLine(prog=f"pgt {chosen}")
        COMMANDS[chosen].options(made)
        return made
    made = OneLine(prog="pgt", description="PowerGrad Transform: train, and compare with the paper's numbers.")
    made.add_argument("--version", action="version", version=_version() if chosen == "--version" else "")
    commands = made.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("train", help="train one run, or many with -m")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return made


def _version() -> str:
    """The version, and the commit if it is known."""
    from pgt.core.machine import commit

    known = commit()
    return __version__ if known.startswith("version ") else f"{__version__} (commit {known})"


def entry() -> NoReturn:
    """The console script: `main`, and the way out of the process."""
    show_all_characters()
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch's words; `main` says what is missing
    try:
        code = main()
    except SystemExit as left:  # argparse and Hydra leave so, with a number
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):  # of a function of the user's own
            print(left.code, file=sys.stderr)
    except BrokenPipeError:  # of standard error
        code = READER_LEFT
    except Exception:  # a fault of ours
        traceback.print_exc()
        code = 1
    lost = written_out()
    code = code or lost
    distributed = sys.modules.get("torch.distributed")
    if code and distributed is not None and distributed.is_available() and distributed.is_initialized():
        from pgt.launch.processes import leave

        leave(code)
    sys.exit(code)


def _complete(arguments: list[str]) -> int:
    """Hydra's `-sc`: install completion, or answer its script, which gives the line so far in COMP_LINE."""
    line = os.environ.get("COMP_LINE")
    if not line:
        return _train(arguments)
    words, between = line.split(), "\n" if "query=fish" in arguments else " "
    before, last = (words, "") if line.endswith(" ") else (words[:-1], words[-1])
    if len(before) < 2:
        print("train", *COMMANDS, sep=between)
    elif before[1] in ("train", "plan"):
        group, equals, _ = last.partition("=")
        with suppress(InputError), own_conf(re.findall(r"--config-dir[=\s]+(\S+)\s", line)):
            if equals and is_group(group):
                print(*(f"{group}={name}" for name in choices(group)), sep=between)
                return 0
        os.environ["COMP_LINE"] = line.replace(f" {before[1]}", "", 1)  # what Hydra completes has no commands
        with redirect_stdout(StringIO()) as found:
            _train(arguments)
        print(*(word for word in found.getvalue().split() if not word.startswith("experiment/")), sep=between)
    return 0


def _train(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(TRAIN_HELP.format(groups=", ".join(groups())))
        return 0
    from pgt.launch import jobs

    return jobs.train(arguments)
