"""The `pgt` command; each subcommand imports only what it needs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pgt import __version__
from pgt.environment import cpus
from pgt.errors import InputError, TrainingError, as_input_error
from pgt.reproduction.cost import DEFAULT_GPU
from pgt.reproduction.formats import FORMATS

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
        return COMMANDS[options.command](options)
    except (InputError, TrainingError) as error:
        print(f"pgt: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"pgt: {as_input_error(error)}", file=sys.stderr)
        return InputError.exit_code
    except KeyboardInterrupt:
        on = "; the same command goes on from the last whole epoch" if arguments[:1] == ["train"] else ""
        print(f"pgt: interrupted{on}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgt", description="PowerGrad Transform: train, and set the paper beside what was measured."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("train", help="train one run, or many with -m")

    table = commands.add_parser("table", help="the paper's tables beside what was measured, or those of any experiment")
    table.add_argument("what", help="1, 2, 3 or all: the paper's; an experiment, or a folder of them: demo/bn, demo")
    table.add_argument("--runs", type=Path, help="the runs folder (default: runs)")
    table.add_argument("--format", choices=FORMATS, help="(default: terminal, or by the ending of --output)")
    table.add_argument("--output", type=Path, help="write it there, too: .md, .csv, .tex or .txt")

    figure = commands.add_parser("figure", help="draw a figure of the paper from runs")
    figure.add_argument("number", type=int, metavar="N", help="of the paper: 2, 4-8, 10-12 or 14-17")
    figure.add_argument("experiment", nargs="?", help="whose runs to show instead: demo, demo/bn, demo/bn/<run id>")
    figure.add_argument("--runs", type=Path, help="the runs folder (default: runs)")
    figure.add_argument("--output", type=Path, help="the picture (default: figureN.svg and figureN.png)")

    report = commands.add_parser("report", help="one HTML page of tables, figures and every run")
    report.add_argument("--runs", type=Path, help="the runs folder (default: runs)")
    report.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    report.add_argument("--no-figures", action="store_true", help="leave the figures out: they take some seconds")

    export = commands.add_parser("export", help="a finished run's network as a folder for timm and the Hub")
    export.add_argument("run", type=Path, help="a run folder: runs/<experiment>/<run id>")
    export.add_argument("--weights", choices=["best", "last"], default="best", help="of which epoch (default: best)")
    export.add_argument("--output", type=Path, help="the folder (default: RUN/export, or RUN/export-calibrated)")
    export.add_argument(
        "--calibrate", action="store_true", help="multiply the classifier by α: softmax(z) is calibrated"
    )

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

    data = commands.add_parser("data", help="look after data sets")
    verify = data.add_subparsers(dest="what", required=True, metavar="what").add_parser(
        "verify", help="decode every image of a folder, count them, and write down what `pgt train` compares with"
    )
    verify.add_argument("root", type=Path, help="a folder with train/<class>/ and val/<class>/")
    verify.add_argument("--workers", type=at_least(1), default=cpus(), help="processes (default: one a CPU)")
    verify.add_argument("--output", type=Path, help="the manifest (default: ROOT/pgt-manifest.json)")

    bench = commands.add_parser("bench", help="speed beside what a user would pick instead")
    sides = bench.add_subparsers(dest="what", required=True, metavar="what")
    loss = sides.add_parser("loss", help="forward and backward of PGT, of cross-entropy and of the published hook")
    loss.add_argument("--rounds", type=at_least(2), default=300, help="measured rounds (default: 300)")
    loss.add_argument("--compiled", action="store_true", help="under torch.compile, too (some minutes)")
    step = sides.add_parser("step", help="a training step beside a bare PyTorch loop's and timm's")
    step.add_argument("--rounds", type=at_least(2), default=10, help="rounds through all loops (default: 10)")
    step.add_argument("--steps", type=at_least(1), default=10, help="steps of a loop in a round (default: 10)")
    loader = sides.add_parser("loader", help="our training loaders, torchvision's and timm's on the same JPEGs")
    loader.add_argument("--root", type=Path, help="a folder of classes of images (default: generated, 500x375)")
    loader.add_argument("--workers", type=at_least(1), default=cpus(), help="of each loader (default: one a CPU)")
    loader.add_argument("--batch", type=at_least(1), default=64, help="images of a batch (default: 64)")
    loader.add_argument("--batches", type=at_least(1), default=12, help="timed batches of a round (default: 12)")
    loader.add_argument("--rounds", type=at_least(1), default=3, help="rounds through all loaders (default: 3)")

    plan = commands.add_parser("plan", help="the distinct runs of experiments: which are done, what the others cost")
    plan.add_argument("overrides", nargs="+", help="as of pgt train -m: experiment=table1/all,table2/all seed=0,1,2")
    plan.add_argument("--runs", type=Path, help="the runs folder (default: runs)")
    plan.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)  # a plan always is of many
    plan.add_argument("--gpus", type=at_least(1), default=4, help="that may share a run (default: 4, as the paper's)")
    cards = "V100-16GB, A100-80GB or RTX3090; the first by default"
    plan.add_argument("--gpu", default=DEFAULT_GPU, help=f"whose published speed counts: {cards}")
    speed = plan.add_mutually_exclusive_group()
    speed.add_argument("--images-per-second", type=positive, help="of one GPU, whatever the network")
    speed.add_argument("--bench", type=Path, action="append", help="tables of pgt bench step and loader, here or there")
    speed.add_argument("--probe", action="store_true", help="measure 50 steps of each network on this machine")
    plan.add_argument("--loader-images-per-second", type=positive, help="that the machine's CPUs deliver")

    commands.add_parser("hook", help="what the published listing computes, by loss scale, batch and precision")
    return parser


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


def _train(arguments: list[str]) -> int:
    from pgt import launch
    from pgt.resources import conf_dir

    if "-h" in arguments or "--help" in arguments:
        folders = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
        print(TRAIN_HELP.format(groups=", ".join(folders)))
        return 0
    return launch.train(arguments)


def _runs(options: argparse.Namespace) -> Path:
    """The runs folder; the default one need not be there, one that is named must."""
    if options.runs is not None and not options.runs.is_dir():
        raise InputError(f"there is no folder {options.runs}: name the runs folder by --runs")
    return options.runs or Path("runs")


def _table(options: argparse.Namespace) -> int:
    from pgt.reproduction import formats, sheets, tables

    form = formats.format_of(options.output) if options.output else options.format or "terminal"
    if options.format not in (None, form):
        raise InputError(f"--format {options.format} and --output {options.output} do not go together: leave one out")
    if options.what in ("1", "2", "3", "all"):
        numbers = (1, 2, 3) if options.what == "all" else (int(options.what),)
        built = [sheets.build(_runs(options), number) for number in numbers]
        if form == "csv":
            built = [sheets.raw(_runs(options), numbers)]
    else:
        built = [(tables.raw if form == "csv" else tables.build)(_runs(options), options.what)]
    text = formats.render(built, form)
    if options.output:
        tables.write(options.output, text)
    print(text)
    if options.output:
        print(f"written to {options.output}")
    return 0


def _figure(options: argparse.Namespace) -> int:
    from pgt.reproduction import figures

    if options.number not in figures.NUMBERS:
        numbers = ", ".join(map(str, figures.NUMBERS))
        raise InputError(f"no figure {options.number} is made of runs: choose one of {numbers}")
    output = options.output or Path(f"figure{options.number}")
    for path in figures.save(options.number, _runs(options), options.experiment, output):
        print(f"written to {path}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from pgt.reproduction import report

    if options.output.suffix not in (".html", ".htm"):
        raise InputError(f"cannot write a page to {options.output}: end the name in .html")
    report.write(_runs(options), options.output, drawn=not options.no_figures)
    print(f"written to {options.output}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from pgt import layout
    from pgt.compose import compose_all
    from pgt.config import identity
    from pgt.reproduction import cost, plan
    from pgt.validate import check_size

    for name in ("IMAGENET", "CIFAR"):
        os.environ.setdefault(name, "not set")  # data.root costs nothing, and a plan is made before there are data
    configs = compose_all(options.overrides, multirun=True)
    for config in configs:
        check_size(config)
    jobs = [(c.experiment or "custom", identity(c), layout.largest(c.recipe, options.gpus)) for c in configs]
    items = plan.plan(jobs, _runs(options))
    bench = {name: speed for path in options.bench or () for name, speed in cost.bench_speeds(path).items()}
    loader = bench.get("loader")
    if options.loader_images_per_second:
        loader = cost.Speed(options.loader_images_per_second, "stated")
    if options.probe:
        from pgt.tools import probe

        bench |= probe.speeds((item.identity for item in items), options.gpus)

    def speed(model: str) -> cost.Speed | None:
        if options.images_per_second:
            return cost.Speed(options.images_per_second, "stated")
        return bench.get(model) or cost.published_speed(model, options.gpu)

    print(plan.render(items, plan.Machine(speed, loader)))
    return 0


def _export(options: argparse.Namespace) -> int:
    from pgt.tools import export

    export.command(options.run, options.weights, options.output, options.calibrate)
    return 0


def _validate(options: argparse.Namespace) -> int:
    from pgt.tools import validate

    chosen = validate.Options(
        root=options.data,
        data=options.data_name,
        model=options.model,
        alpha=options.alpha,
        batch=options.batch,
        workers=options.workers,
        image_size=options.image_size,
        precision=options.precision,
    )
    validate.command(options.checkpoint, options.weights, chosen)
    return 0


def _bench(options: argparse.Namespace) -> int:
    if options.what == "loader":
        if options.root is not None and not options.root.is_dir():
            raise InputError(f"no folder {options.root}: --root must hold <class>/*.jpg, or train/<class>/*.jpg")
        from pgt.tools import bench_loader

        measured = bench_loader.loaders(options.root, options.batch, options.workers, options.batches, options.rounds)
    elif options.what == "step":
        from pgt.tools import bench_step

        measured = bench_step.steps(options.rounds, options.steps)
    else:
        from pgt.tools import bench

        measured = bench.losses(options.rounds, options.compiled)
    print(measured)
    return 0


def _data(options: argparse.Namespace) -> int:
    from pgt.tools import verify

    verify.command(options.root, options.workers, options.output)
    return 0


def _hook(options: argparse.Namespace) -> int:
    from pgt.tools import hook

    print(hook.report())
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "table": _table,
    "figure": _figure,
    "report": _report,
    "export": _export,
    "validate": _validate,
    "plan": _plan,
    "data": _data,
    "bench": _bench,
    "hook": _hook,
}


if __name__ == "__main__":
    sys.exit(main())
