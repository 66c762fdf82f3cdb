"""The commands of `pgt` other than `train`: for each, its options and then what it does.

Nothing is imported before a command needs it, so that `pgt --help` answers at once.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pgt.core.errors import InputError
from pgt.core.files import write_text


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        help: its line in `pgt --help`.
        options: adds its options to its parser.
        run: does what they ask for; returns the exit code, or None for 0.
    """

    help: str
    options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]


def doctor_options(parser: ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="ROOT", help="an image folder to check (default: $IMAGENET)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for runs to come (default: runs)")
    parser.add_argument("--resume", action="store_true", help="also kill a training, resume it and compare")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")


def doctor(options: Namespace) -> int:
    from pgt.tools import doctor

    return doctor.command(options.data, options.runs, options.resume, options.json)


def init_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder; files that are there stay as they are")


def init(options: Namespace) -> None:
    from pgt.tools import starter

    starter.command(options.folder)


def plan_options(parser: ArgumentParser) -> None:
    from pgt.reproduction.cost import DEFAULT_GPU

    parser.add_argument("overrides", nargs="+", help="as for pgt train -m: experiment=table1/all,table2/all seed=0,1,2")
    add_runs(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)  # a plan always has many runs
    gpus = "GPUs that share one run (default: 4, as the paper's)"
    parser.add_argument("--gpus", type=at_least(1), default=4, help=gpus)
    cards = f"V100-16GB, A100-80GB or RTX3090 (default: {DEFAULT_GPU})"
    parser.add_argument("--gpu", default=DEFAULT_GPU, help=f"take the published speed of this card: {cards}")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--images-per-second", type=positive, help="speed of one GPU, for all networks")
    speed.add_argument("--bench", type=Path, action="append", help="speeds that scripts/bench wrote with --json")
    speed.add_argument("--probe", action="store_true", help="measure 50 steps of each network on this machine")
    decoded = "images per second that this machine's CPUs decode"
    parser.add_argument("--loader-images-per-second", type=positive, help=decoded)


def plan(options: Namespace) -> None:
    from pgt.reproduction import plan

    if options.probe:
        from pgt.tools import probe
    plan.command(
        options.overrides,
        root=options.runs,
        gpus=options.gpus,
        gpu=options.gpu,
        images_per_second=options.images_per_second,
        bench=options.bench or (),
        probe=probe.speeds if options.probe else None,
        loader_images_per_second=options.loader_images_per_second,
    )


def status_options(parser: ArgumentParser) -> None:
    parser.add_argument("experiment", nargs="?", help="only its runs: demo/bn, or a folder, demo (default: all)")
    add_runs(parser)
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--watch", action="store_true", help="look every ten seconds, until no run is queued or running")
    does.add_argument("--json", action="store_true", help="print a list of objects")
    does.add_argument("--cancel", action="store_true", help="end what is queued or running of the experiment, in order")
    again = "run the commands of the experiment's failed and refused runs again"
    does.add_argument("--retry-failed", action="store_true", help=again)


def status(options: Namespace) -> int:
    from pgt.reproduction import status

    if not (options.cancel or options.retry_failed):
        status.command(options.runs, options.experiment, options.json, options.watch)
        return 0
    if not options.experiment:
        raise InputError("say which experiment: `pgt status --cancel demo/bn`, `pgt status --retry-failed demo/bn`")
    return _cancel(options) if options.cancel else _retry(options)


def _cancel(options: Namespace) -> int:
    from pgt.reproduction import steering

    done = 0
    for line in steering.cancel(options.runs, options.experiment):
        print(line)
        done += 1
    if not done:
        print(f"nothing of {options.experiment} is queued or running")
    return 0


def _retry(options: Namespace) -> int:
    import shlex

    from pgt.reproduction import steering

    found = steering.retries(options.runs, options.experiment)
    if not found:
        print(f"no run of {options.experiment} has failed or been refused")
    codes = []
    for command, count in found.items():
        program, words = "".join(command[:1]), command[1:]
        print(f"{program} {shlex.join(words)}  # {count} failed", flush=True)
        if program == "pgt train":
            from pgt.launch import jobs

            codes.append(jobs.train(words))
        else:
            print("pgt did not start it: give the command again yourself")
    return max(codes, default=0)


def table_options(parser: ArgumentParser) -> None:
    from pgt.reproduction.formats import FORMATS

    parser.add_argument("what", help="1, 2, 3 or all: the paper's; an experiment, or a folder of them: demo/bn, demo")
    add_runs(parser)
    parser.add_argument("--format", choices=FORMATS, help="(default: terminal, or by the ending of --output)")
    parser.add_argument("--output", type=Path, help="write it to this file, too: .md, .csv, .tex or .txt")


def table(options: Namespace) -> None:
    from pgt.reproduction import formats, paper_tables, tables
    from pgt.reproduction.groups import read_groups
    from pgt.runs import frame

    form = formats.format_of(options.output) if options.output else options.format or "terminal"
    if options.format not in (None, form):
        raise InputError(f"--format {options.format} and --output {options.output} do not go together: leave one out")
    if options.what in ("1", "2", "3", "all"):
        numbers, runs = (1, 2, 3) if options.what == "all" else (int(options.what),), frame(options.runs)
        if form == "csv":
            found = [paper_tables.paper_data(runs, numbers)]
        else:
            found = [paper_tables.paper_table(runs, number, narrow=form == "terminal") for number in numbers]
    else:
        groups = read_groups(options.runs, options.what)
        found = [tables.experiment_data(groups) if form == "csv" else tables.experiment_table(groups)]
    text = formats.render(found, form)
    if options.output:
        write_text(options.output, text)
    print(text)
    if options.output:
        print(f"written to {options.output}")


def figure_options(parser: ArgumentParser) -> None:
    numbers = "of the paper: 2, 4-8, 10-12 or 14-17; amplification: fluctuation of each layer by epoch; sweep: any keys"
    parser.add_argument("number", type=lambda text: int(text) if text.isdigit() else text, metavar="N", help=numbers)
    parser.add_argument("experiment", nargs="?", help="show its runs instead: demo, demo/bn, demo/bn/<run id>")
    add_runs(parser)
    parser.add_argument("--output", type=Path, help="the picture (default: figureN.svg and figureN.png)")
    parser.add_argument("--x", metavar="KEY", help="for sweep: the key of the horizontal axis, such as recipe.lr_peak")
    parser.add_argument("--y", metavar="KEY", help="for sweep: a key for the vertical axis, which draws a heat map")
    parser.add_argument("--value", metavar="NAME", help="for sweep: the measured value (default: test_top1_best)")


def figure(options: Namespace) -> None:
    from pgt.reproduction import figures

    if options.number not in (known := [*figures.NUMBERS, *figures.NAMES]):
        numbers = ", ".join(map(str, known))
        raise InputError(f"there is no figure {options.number} here: choose one of {numbers}")
    given = {name: value for name in ("x", "y", "value") if (value := vars(options)[name])}
    prefix = "figure" if isinstance(options.number, int) else ""
    name = "-".join([str(options.number), *(key.rpartition(".")[2] for key in given.values())])
    output = options.output or Path(f"{prefix}{name}")
    if given and options.number != figures.sweep.NAME:
        raise InputError(f"--{min(given)} is for `pgt figure sweep EXPERIMENT`: leave it out")
    for path in figures.save(options.number, options.runs, options.experiment, output, figures.sweep.Axes(**given)):
        print(f"written to {path}")


def mirror_options(parser: ArgumentParser) -> None:
    parser.add_argument("logger", help="where their records go: wandb, tensorboard, or a logger of your own")
    parser.add_argument("experiment", nargs="?", help="only its runs: demo, demo/bn, demo/bn/<run id> (default: all)")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="of the logger, as for pgt train: logger.wandb.group=mine"
    )
    add_runs(parser)
    parser.add_argument("--project", help="of wandb (default: pgt)")
    parser.add_argument("--entity", help="of wandb: a user or a team (default: your own)")
    parser.add_argument("--mode", choices=["online", "offline"], help="of wandb (default: online)")


def mirror(options: Namespace) -> None:
    from pgt.config.compose import compose_all
    from pgt.config.grammar import written
    from pgt.runs import mirrors

    flags = {name: value for name in ("project", "entity", "mode") if (value := vars(options)[name])}
    if flags and options.logger != "wandb":
        raise InputError(f"--{next(iter(flags))} is not for {options.logger}: leave it out")
    experiment, overrides = options.experiment, options.overrides
    if experiment and "=" in experiment:
        experiment, overrides = None, [experiment, *overrides]
    flagged = [f"logger.wandb.{name}={written(value)}" for name, value in flags.items()]
    for text in overrides:
        if not text.startswith("logger."):
            raise InputError(f"leave out '{text}': only keys of the logger can be set, as in logger.wandb.group=mine")
    [config] = compose_all([f"logger={options.logger}", *overrides, *flagged])
    if not config.logger.chosen():
        raise InputError(f"logger={options.logger} takes no records: name one that does, such as tensorboard")
    mirrors.send(options.runs, experiment, config.logger.chosen(), print)


def report_options(parser: ArgumentParser) -> None:
    parser.add_argument("experiment", nargs="?", help="only its runs: demo/bn, or a folder, demo (default: all)")
    add_runs(parser)
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.add_argument("--no-figures", action="store_true", help="leave the figures out: they take some seconds")


def report(options: Namespace) -> None:
    from pgt.reproduction import report

    if options.output.suffix not in (".html", ".htm"):
        raise InputError(f"cannot write a page to {options.output}: end the name in .html")
    write_text(options.output, report.page(options.runs, options.experiment, drawn=not options.no_figures))
    print(f"written to {options.output}")


def export_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder: runs/<experiment>/<run id>")
    parser.add_argument("--weights", choices=["best", "last"], default="best", help="of which epoch (default: best)")
    parser.add_argument("--output", type=Path, help="the folder (default: RUN/export, or RUN/export-calibrated)")
    calibrated = "multiply the classifier by α: softmax(z) is calibrated"
    parser.add_argument("--calibrate", action="store_true", help=calibrated)


def export(options: Namespace) -> None:
    from pgt.tools import export

    export.command(options.run, options.weights, options.output, options.calibrate)


def validate_options(parser: ArgumentParser) -> None:
    from pgt.config.schema import Precision

    weights = "a run folder, an export, or a .pt, .pth, .pth.tar, .safetensors"
    parser.add_argument("checkpoint", type=Path, help=weights)
    root = "the data set's folder (default: the run's)"
    parser.add_argument("--data", dest="root", type=Path, metavar="ROOT", help=root)
    name = "imagenet, cifar10, ... (default: the run's, or imagefolder)"
    parser.add_argument("--data-name", metavar="NAME", help=name)
    parser.add_argument(
        "--model", dest="model_name", metavar="NAME", help="of the network (default: the one that the weights fit)"
    )
    alpha = "α by which logits are multiplied for the calibrated measures (default: the checkpoint's, or 1)"
    parser.add_argument("--alpha", type=float, help=alpha)
    parser.add_argument("--weights", dest="which", choices=["best", "last"], help="of a run folder (default: best)")
    parser.add_argument("--batch", type=at_least(1), help="images of a forward pass (default: 256)")
    workers = "processes that decode images (default: one a CPU, at most 16)"
    parser.add_argument("--workers", type=at_least(0), help=workers)
    parser.add_argument("--image-size", type=at_least(1), help="pixels a side (default: the run's, or 224)")
    parser.add_argument(
        "--precision", choices=get_args(Precision), help="of the forward pass (default: the run's, or fp32)"
    )


def validate(options: Namespace) -> None:
    from pgt.tools import validate

    validate.command(**vars(options))


def verify_options(parser: ArgumentParser) -> None:
    from pgt.core.machine import cpus

    does = "decode and count every image of a folder, and write the list that `pgt train` checks it against"
    parser.add_argument("what", choices=["verify"], help=does)
    parser.add_argument("root", type=Path, help="a folder with train/<class>/ and val/<class>/")
    parser.add_argument("--workers", type=at_least(1), default=cpus(), help="processes (default: one a CPU)")
    parser.add_argument("--output", type=Path, help="the manifest (default: ROOT/pgt-manifest.json)")


def data(options: Namespace) -> None:
    from pgt.data import verify

    verify.command(options.root, options.workers, options.output)


def list_options(parser: ArgumentParser) -> None:
    known = _listed()
    parser.add_argument(
        "what",
        type=lambda text: _plural(text) if _plural(text) in known else text,  # `method` for `methods`
        choices=[*known],
        help="the group to list",
    )
    parser.add_argument("--config-dir", metavar="DIR", help="list those of this folder, too")


def list_choices(options: Namespace) -> int:
    from pgt.config.resources import choices, conf_file, header

    group = _listed()[options.what]
    names = choices(group)
    for name in names:
        print(f"{name:{max(map(len, names))}}  {header(conf_file(f'{group}/{name}'))}".rstrip())
    if group == "experiment":
        print("FOLDER/all stands for all of a folder, as in `pgt train -m experiment=table1/all`")
    return 0


def _listed() -> dict[str, str]:
    """The config groups whose choices `pgt list` lists, by their plurals."""
    from pgt.config.resources import groups

    return {_plural(group): group for group in groups()} | {"launchers": "hydra/launcher"}


def _plural(group: str) -> str:
    """The plural of a config group's name."""
    return group if group == "data" else f"{group}s"


COMMANDS = {
    "init": Command("copy a first experiment, templates for Slurm and examples into a folder", init_options, init),
    "list": Command("the experiments, models, methods, data and recipes that there are", list_options, list_choices),
    "doctor": Command("check this machine, before hours are spent on it (a minute)", doctor_options, doctor),
    "plan": Command("the distinct runs of experiments: which are done, what the others cost", plan_options, plan),
    "status": Command(
        "where runs stand: queued, running, finished, failed, ...; cancel and retry", status_options, status
    ),
    "table": Command("the paper's tables beside what was measured, or those of any experiment", table_options, table),
    "figure": Command("draw a figure of the paper from runs", figure_options, figure),
    "mirror": Command("send runs that have ended to wandb or TensorBoard", mirror_options, mirror),
    "report": Command("one HTML page of results, tables, figures and runs", report_options, report),
    "export": Command("a finished run's network as a folder for timm and the Hub", export_options, export),
    "validate": Command("evaluate weights on a test set, beside what the paper says", validate_options, validate),
    "data": Command("look after data sets", verify_options, data),
}


def add_runs(parser: ArgumentParser) -> None:
    """Add --runs and --config-dir. The default of --runs need not be there; a folder that is named must be."""
    parser.add_argument("--runs", type=_runs_folder, default=Path("runs"), help="the runs folder (default: runs)")
    parser.add_argument("--config-dir", metavar="DIR", help="find experiments and other configs in this folder, too")


def _runs_folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise InputError(f"there is no folder {text}: name the runs folder by --runs")
    return Path(text)


def at_least(low: int) -> Callable[[str], int]:
    """The type of an option that is a whole number, not below `low`."""

    def number(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {text}")
        return int(text)

    number.__name__ = "whole number"  # argparse says "invalid whole number value"
    return number


def positive(text: str) -> float:
    """The type of an option that is a number above 0."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return float(text)


positive.__name__ = "number"
