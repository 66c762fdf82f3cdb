"""The `pgt` command; each subcommand imports only what it needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pgt import __version__
from pgt.errors import InputError, TrainingError

TRAIN_HELP = """usage: pgt train [-m] [override ...]

Train one run, or with -m every combination of the overrides' values.

  pgt train experiment=demo/bn                  an experiment, as its file in conf/experiment/ says
  pgt train -m experiment=demo/bn seed=0,1,2    three seeds of it
  pgt train model=resnet50 schedule=cosine method=pgt method.alpha=0.3 data=imagefolder data.root=DIR

The same command again returns a finished run at once and goes on with an interrupted one.

  --cfg job           print the composed config, train nothing
  --info defaults     print which groups it is made of (Hydra's other flags work, too)

groups: {groups}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 (a run failed), 2 (bad input) or 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["train"]:
            return _train(arguments[1:])
        options = _parser().parse_args(arguments)
        command = {"table": _table, "figure": _figure}[options.command]
        return command(options)
    except (InputError, TrainingError) as error:
        print(f"pgt: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("pgt: interrupted; the same command goes on from the last whole epoch", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgt", description="PowerGrad Transform: train, and set the paper beside what was measured."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("train", help="train one run, or many with -m")

    table = commands.add_parser("table", help="accuracies of finished runs, mean ± deviation over seeds")
    table.add_argument("experiment", help="an experiment, or a folder of them: demo/bn, demo")
    table.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder (default: runs)")
    table.add_argument("--output", type=Path, help="write the table there, too, as Markdown")

    figure = commands.add_parser("figure", help="draw a figure of the paper from runs")
    figure.add_argument("number", choices=["4"], help="4: training and test accuracy by epoch")
    figure.add_argument("experiment", help="an experiment, or a folder of them: demo/bn, demo")
    figure.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder (default: runs)")
    figure.add_argument("--output", type=Path, required=True, help="the picture: .png, .svg or .pdf")
    return parser


def _train(arguments: list[str]) -> int:
    from pgt import launch
    from pgt.compose import conf_dir

    if "-h" in arguments or "--help" in arguments:
        folders = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
        print(TRAIN_HELP.format(groups=", ".join(folders)))
        return 0
    return launch.train(arguments)


def _table(options: argparse.Namespace) -> int:
    from pgt.reproduction import tables

    text = tables.render(tables.compare(options.runs, options.experiment))
    print(text)
    if options.output:
        tables.write(options.output, text)
        print(f"written to {options.output}")
    return 0


def _figure(options: argparse.Namespace) -> int:
    from pgt.reproduction import figures

    figures.accuracy_curves(options.runs, options.experiment, options.output)
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
