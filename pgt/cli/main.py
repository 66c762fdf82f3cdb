"""The `pgt` command; each subcommand imports only what it needs."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pgt.cli.options import parser
from pgt.core.errors import InputError, Stopped, TrainingError, as_input_error
from pgt.core.streams import READER_LEFT, written_out

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
    """Run the command line; returns the exit code: 0, 1 (a run failed), 2 (bad input), 130 (Ctrl-C),
    141 (nobody reads what it prints), or 143 or 138 (stopped by SIGTERM or SIGUSR1)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["train"]:
            return _train(arguments[1:])
        options = parser().parse_args(arguments)
        return COMMANDS[options.command](options)
    except (InputError, TrainingError) as error:
        print(f"pgt: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # of standard output: training runs deal with their own
        return READER_LEFT
    except OSError as error:
        print(f"pgt: {as_input_error(error)}", file=sys.stderr)
        return InputError.exit_code
    except Stopped as stopped:
        print(f"pgt: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        on = "; the same command goes on from its last checkpoint" if arguments[:1] == ["train"] else ""
        print(f"pgt: interrupted{on}", file=sys.stderr)
        return 130


def entry() -> NoReturn:
    """The console script: `main`, and the way out of the process."""
    try:
        code = main()
    except SystemExit as left:  # argparse and Hydra leave so, with a number
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BrokenPipeError:  # of standard error
        code = READER_LEFT
    except Exception:  # a fault of ours
        traceback.print_exc()
        code = 1
    if not written_out():
        code = code or READER_LEFT
    distributed = sys.modules.get("torch.distributed")
    if code and distributed is not None and distributed.is_available() and distributed.is_initialized():
        from pgt.launch.workers import leave

        leave(code)
    sys.exit(code)


def _train(arguments: list[str]) -> int:
    from pgt.config.resources import conf_dir
    from pgt.launch import jobs

    if "-h" in arguments or "--help" in arguments:
        folders = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
        print(TRAIN_HELP.format(groups=", ".join(folders)))
        return 0
    return jobs.train(arguments)


def _runs(options: argparse.Namespace) -> Path:
    """The runs folder; the default one need not be there, one that is named must."""
    if options.runs is not None and not options.runs.is_dir():
        raise InputError(f"there is no folder {options.runs}: name the runs folder by --runs")
    return options.runs or Path("runs")


def _table(options: argparse.Namespace) -> int:
    from pgt.core.files import write_text
    from pgt.reproduction import formats, paper_tables, tables
    from pgt.runs import frame

    form = formats.format_of(options.output) if options.output else options.format or "terminal"
    if options.format not in (None, form):
        raise InputError(f"--format {options.format} and --output {options.output} do not go together: leave one out")
    if options.what in ("1", "2", "3", "all"):
        numbers, runs = (1, 2, 3) if options.what == "all" else (int(options.what),), frame(_runs(options))
        if form == "csv":
            found = [paper_tables.paper_data(runs, numbers)]
        else:
            found = [paper_tables.paper_table(runs, number) for number in numbers]
    else:
        table = tables.experiment_data if form == "csv" else tables.experiment_table
        found = [table(_runs(options), options.what)]
    text = formats.render(found, form)
    if options.output:
        write_text(options.output, text)
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
    from pgt.config import sharing as layout
    from pgt.config.compose import compose_all
    from pgt.config.identity import identity
    from pgt.config.rules import check_size
    from pgt.reproduction import cost, formats, plan

    for name in ("IMAGENET", "TINY_IMAGENET", "CIFAR"):
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

    print(formats.render([plan.plan_table(items, plan.Machine(speed, loader))], "markdown"))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from pgt.tools import doctor

    return doctor.command(options.data, options.runs)


def _status(options: argparse.Namespace) -> int:
    from pgt.reproduction import formats, status

    root = _runs(options)
    found = status.standings(root, options.experiment)
    if found.empty:
        what = f"of {options.experiment} " if options.experiment else ""
        raise InputError(f"no run {what}under {root}: `pgt train` makes them, --runs names another folder")
    print(formats.render([status.status_table(found, root)], "markdown"))
    return 0


def _export(options: argparse.Namespace) -> int:
    from pgt.tools import export

    export.command(options.run, options.weights, options.output, options.calibrate)
    return 0


def _validate(options: argparse.Namespace) -> int:
    from pgt.tools import evaluate

    chosen = evaluate.Options(
        root=options.data,
        data=options.data_name,
        model=options.model,
        alpha=options.alpha,
        batch=options.batch,
        workers=options.workers,
        image_size=options.image_size,
        precision=options.precision,
    )
    evaluate.command(options.checkpoint, options.weights, chosen)
    return 0


def _data(options: argparse.Namespace) -> int:
    from pgt.data import verify

    verify.command(options.root, options.workers, options.output)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "table": _table,
    "figure": _figure,
    "report": _report,
    "export": _export,
    "validate": _validate,
    "plan": _plan,
    "status": _status,
    "doctor": _doctor,
    "data": _data,
}
