"""What the `pgt` command line takes, `pgt train` apart, whose grammar is Hydra's."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

from pgt import __version__
from pgt.core.errors import InputError
from pgt.core.machine import cpus
from pgt.reproduction.cost import DEFAULT_GPU
from pgt.reproduction.formats import FORMATS

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class OneLine(argparse.ArgumentParser):
    """A parser, and each of its commands', whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(InputError.exit_code, f"pgt: {message}; see `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    made = OneLine(prog="pgt", description="PowerGrad Transform: train, and set the paper beside what was measured.")
    made.add_argument("--version", action="version", version=__version__)
    commands = made.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("train", help="train one run, or many with -m")
    for add in (_doctor, _plan, _status, _table, _figure, _report, _export, _validate, _data):
        add(commands)
    return made


def _table(commands: Commands) -> None:
    """What tables to print, and how."""
    table = commands.add_parser("table", help="the paper's tables beside what was measured, or those of any experiment")
    table.add_argument("what", help="1, 2, 3 or all: the paper's; an experiment, or a folder of them: demo/bn, demo")
    table.add_argument("--runs", type=Path, help="the runs folder (default: runs)")
    table.add_argument("--format", choices=FORMATS, help="(default: terminal, or by the ending of --output)")
    table.add_argument("--output", type=Path, help="write it there, too: .md, .csv, .tex or .txt")


def _figure(commands: Commands) -> None:
    """Which figure, of whose runs."""
    figure = commands.add_parser("figure", help="draw a figure of the paper from runs")
    figure.add_argument("number", type=int, metavar="N", help="of the paper: 2, 4-8, 10-12 or 14-17")
    figure.add_argument("experiment", nargs="?", help="whose runs to show instead: demo, demo/bn, demo/bn/<run id>")
    figure.add_argument("--runs", type=Path, help="the runs folder (default: runs)")
    figure.add_argument("--output", type=Path, help="the picture (default: figureN.svg and figureN.png)")


def _report(commands: Commands) -> None:
    """The page."""
    report = commands.add_parser("report", help="one HTML page of tables, figures and every run")
    report.add_argument("--runs", type=Path, help="the runs folder (default: runs)")
    report.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    report.add_argument("--no-figures", action="store_true", help="leave the figures out: they take some seconds")


def _export(commands: Commands) -> None:
    """A run's weights, out."""
    export = commands.add_parser("export", help="a finished run's network as a folder for timm and the Hub")
    export.add_argument("run", type=Path, help="a run folder: runs/<experiment>/<run id>")
    export.add_argument("--weights", choices=["best", "last"], default="best", help="of which epoch (default: best)")
    export.add_argument("--output", type=Path, help="the folder (default: RUN/export, or RUN/export-calibrated)")
    export.add_argument(
        "--calibrate", action="store_true", help="multiply the classifier by α: softmax(z) is calibrated"
    )


def _validate(commands: Commands) -> None:
    """Weights, in."""
    validate = commands.add_parser("validate", help="evaluate weights on a test set, beside what the paper says")
    validate.add_argument(
        "checkpoint", type=Path, help="a run folder, an export, or a .pt, .pth, .pth.tar, .safetensors"
    )
    validate.add_argument("--data", type=Path, metavar="ROOT", help="the data set's folder (default: the run's)")
    validate.add_argument(
        "--data-name", metavar="NAME", help="imagenet, cifar10, ... (default: the run's, or imagefolder)"
    )
    validate.add_argument("--model", metavar="NAME", help="of the network (default: which the weights fit)")
    validate.add_argument("--alpha", type=float, help="of α·z (default: the checkpoint's, or 1)")
    validate.add_argument("--weights", choices=["best", "last"], help="of a run folder (default: best)")
    validate.add_argument("--batch", type=at_least(1), help="images of a forward pass (default: 256)")
    validate.add_argument("--workers", type=at_least(0), help="that decode (default: 8, never more than one a CPU)")
    validate.add_argument("--image-size", type=at_least(1), help="pixels a side (default: the run's, or 224)")
    precisions = ["fp32", "tf32", "bf16", "fp16", "fp64"]
    validate.add_argument("--precision", choices=precisions, help="of the forward pass (default: the run's, or fp32)")


def _data(commands: Commands) -> None:
    """Data sets."""
    data = commands.add_parser("data", help="look after data sets")
    verify = data.add_subparsers(dest="what", required=True, metavar="what").add_parser(
        "verify", help="decode every image of a folder, count them, and write down what `pgt train` compares with"
    )
    verify.add_argument("root", type=Path, help="a folder with train/<class>/ and val/<class>/")
    verify.add_argument("--workers", type=at_least(1), default=cpus(), help="processes (default: one a CPU)")
    verify.add_argument("--output", type=Path, help="the manifest (default: ROOT/pgt-manifest.json)")


def _plan(commands: Commands) -> None:
    """What there is to run."""
    plan = commands.add_parser("plan", help="the distinct runs of experiments: which are done, what the others cost")
    plan.add_argument("overrides", nargs="+", help="as of pgt train -m: experiment=table1/all,table2/all seed=0,1,2")
    plan.add_argument("--runs", type=Path, help="the runs folder (default: runs)")
    plan.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)  # a plan always is of many
    plan.add_argument("--gpus", type=at_least(1), default=4, help="that may share a run (default: 4, as the paper's)")
    cards = "V100-16GB, A100-80GB or RTX3090; the first by default"
    plan.add_argument("--gpu", default=DEFAULT_GPU, help=f"whose published speed counts: {cards}")
    speed = plan.add_mutually_exclusive_group()
    speed.add_argument("--images-per-second", type=positive, help="of one GPU, whatever the network")
    speed.add_argument("--bench", type=Path, action="append", help="what the benchmarks wrote with --json")
    speed.add_argument("--probe", action="store_true", help="measure 50 steps of each network on this machine")
    plan.add_argument("--loader-images-per-second", type=positive, help="that the machine's CPUs deliver")


def _doctor(commands: Commands) -> None:
    """The machine."""
    doctor = commands.add_parser("doctor", help="check this machine, before hours are spent on it (a minute or two)")
    doctor.add_argument("--data", type=Path, metavar="ROOT", help="an image folder to look at (default: $IMAGENET)")
    doctor.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are to be written (default: runs)")


def _status(commands: Commands) -> None:
    """What has run."""
    status = commands.add_parser("status", help="where runs stand: finished, training, stopped, diverged; what is left")
    status.add_argument("experiment", nargs="?", help="only these: demo/bn, demo (default: all)")
    status.add_argument("--runs", type=Path, help="the runs folder (default: runs)")


def at_least(low: int) -> Callable[[str], int]:
    """A whole number of an option, not below `low`."""

    def number(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {text}")
        return int(text)

    number.__name__ = "whole number"  # argparse says "invalid whole number value"
    return number


def positive(text: str) -> float:
    """A number of an option above 0."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return float(text)


positive.__name__ = "number"
