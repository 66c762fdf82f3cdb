"""`pgt validate`: evaluates weights on a test set, beside the run's own records and the paper's rows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from pgt import data, models
from pgt.config.resources import read_conf
from pgt.core.errors import InputError
from pgt.core.machine import has_dali
from pgt.core.registry import DATA_SETS, TIMM
from pgt.data.delivery import EVALUATION_BATCH, Delivery
from pgt.reproduction import formats, published
from pgt.reproduction.formats import Column
from pgt.reproduction.published import Row
from pgt.tools import networks, weights
from pgt.tools.probe import first_device
from pgt.tools.weights import Source
from pgt.training.evaluation import evaluate
from pgt.training.precision import Precision

WIDTH = 120
RECIPE = ("model", "modify_softmax", "sched", "lr", "warmup_lr", "min_lr", "warmup_epochs", "epochs", "cooldown_epochs",
          "decay_epochs", "decay_rate", "batch_size", "world_size", "opt", "momentum", "weight_decay", "smoothing",
          "clip_grad", "clip_mode", "amp", "seed")  # fmt: skip
"""Training arguments that are printed first, by the names of timm and of the authors."""
MEASURES = {
    "test_top1": "top-1 %",
    "test_top5": "top-5 %",
    "test_loss": "loss at z",
    "test_loss_alpha": "loss at α·z",
    "test_ece": "calibration error at z %",
    "test_ece_alpha": "calibration error at α·z %",
    "test_logit_norm": "norm of z",
}


def command(
    checkpoint: Path,
    *,
    which: str | None,
    root: Path | None,
    data_name: str | None,
    model_name: str | None,
    alpha: float | None,
    batch: int | None,
    workers: int | None,
    image_size: int | None,
    precision: str | None,
) -> None:
    """Read weights, evaluate them and print the results. None stands for the checkpoint's own value, or else for the
    default.

    Args:
        checkpoint: whatever `pgt.tools.weights.read` reads.
        which: `best` or `last`, of a run folder.
        root, data_name: folder and name of the data set.
        model_name: of the network.
        alpha: the α of α·z.
        batch: images of a forward pass.
        workers: number of processes that decode images.
        image_size: pixels a side.
        precision: of the forward pass.

    Raises:
        InputError: weights, network or data cannot be used or do not fit each other.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise InputError(f"--alpha must lie between 0 and 1, got {alpha:g}")
    source = weights.read(checkpoint, which)
    name, model = networks.fit(source.path, source.state, model_name or source.model)
    print(f"{source.path}: {name}, {networks.classes(model):,} classes")
    for line in _training_lines(source):
        print(line)
    given = {"root": root and str(root), "workers": workers, "image_size": image_size}
    chosen = chosen_data(source.config, name, data_name, **given)
    known = source.known or ({} if alpha is None else {"alpha": alpha})
    if alpha is None:
        alpha = 1.0 if source.alpha is None else source.alpha
        if (trained := source.known.get("alpha", alpha)) != alpha:
            inside = f"calibrated export: α = {trained:g} is already in the classifier"
            print(f"{inside}, so softmax(z) is the calibrated probability")
    precision = precision or source.config.get("trainer", {}).get("precision", "fp32")
    measured, count = measure(source.path, model, chosen, alpha, precision, batch or EVALUATION_BATCH)
    where = " ".join(str(part) for part in (chosen["name"], chosen.get("root")) if part)
    by = f", {chosen['interpolation']}, {chosen['backend']}" if "backend" in chosen else ""
    print(f"\n{count:,} images of {where}{by}, {precision}, α = {alpha:g}\n\n{table(measured, source.recorded)}")
    if chosen["name"] == "imagenet":
        print(f"\n{comparison(name, known, measured['test_top1'])}")


def chosen_data(config: Mapping[str, Any], model: str, name: str | None = None, **given: Any) -> dict[str, Any]:
    """Return the arguments of `pgt.data.open_set`: from the command line, else from the run, else from conf/data.

    Args:
        config: of the run; empty if the weights are not a run's.
        model: name of the network, for the interpolation of its images.
        name: of the data set, if it was given.
        given: arguments of the command line; None if not given.

    Raises:
        InputError: there is no such data set, it lacks an option that was given, or its root is not known.
    """
    own = config.get("data", {})
    name = name or own.get("name", "imagefolder")
    if name not in DATA_SETS:
        raise InputError(f"no data set is called {name}: take one of {', '.join(sorted(DATA_SETS))}")
    in_folders = DATA_SETS[name].in_folders
    # imagenet.yaml is imagefolder.yaml with a root
    chosen = read_conf(f"data/{'imagefolder' if in_folders else name}") | {"name": name}
    chosen |= {"root": None} if "root" in chosen else {}
    if own.get("name") == name:
        chosen |= {key: value for key, value in own.items() if key in chosen}
    chosen.pop("drop_last", None)
    for key, value in given.items():
        if value is not None and (key not in chosen or name == "synthetic"):
            option = "data" if key == "root" else key.replace("_", "-")
            raise InputError(f"data set {name} has no {key}: leave --{option} out")
    chosen |= {key: value for key, value in given.items() if value is not None}
    if "root" in chosen and not chosen["root"]:
        raise InputError(f"where is the data set {name}? Name its folder by --data ROOT")
    if in_folders:
        interpolation = config.get("model", {}).get("interpolation")
        if interpolation is None:
            of_timm = model.startswith(TIMM)
            interpolation = models.interpolation(model) if of_timm else read_conf(f"model/{model}")["interpolation"]
        chosen["interpolation"] = interpolation
        if chosen["backend"] == "auto" or (chosen["backend"] == "dali" and not has_dali()):
            chosen["backend"] = "torchvision"  # with Pillow's resize, as the authors evaluated
        if given.get("root") is not None:
            chosen["manifest"] = None
    return chosen


def measure(
    path: Path, model: torch.nn.Module, chosen: Mapping[str, Any], alpha: float, precision_name: str, batch: int
) -> tuple[dict[str, float], int]:
    """Evaluate a network on the first GPU, or on the CPU if there is none, with a progress bar if there is a terminal.

    Args:
        path: of the weights, for error messages.
        model: the network.
        chosen: arguments of `pgt.data.open_set`.
        alpha: the α of α·z.
        precision_name: as `trainer.precision`.
        batch: images of a forward pass.

    Returns:
        The measures of `pgt.training.evaluation.evaluate`, and the number of images.

    Raises:
        InputError: the data set cannot be read, or its number of classes is not the network's.
    """
    device = first_device()
    precision = Precision(precision_name, device.type)
    delivery = Delivery(device, precision.dtype, 1, 1, seed=0, drop_last=False, evaluation_batch=batch)
    _, test = data.open_set(**chosen).loaders(delivery)
    classes = networks.classes(model)
    if test.num_classes != classes:
        raise InputError(f"{path} has {classes:,} classes, the data set {chosen['name']} {test.num_classes:,}")
    model = precision.apply(model).to(device).to(memory_format=torch.channels_last)
    console = Console(stderr=True)
    columns = ("images", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with closing(test), bar:
        task = bar.add_task("", total=test.num_samples)
        model.register_forward_hook(lambda module, images, logits: bar.advance(task, len(logits)))
        measured = evaluate(model, test, alpha, precision)
    return measured, test.num_samples - len(test.skipped)


def _training_lines(source: Source) -> Iterator[str]:
    """Yield lines about the training, from the run, the checkpoint and the log beside it."""
    if source.recorded:
        yield f"after epoch {source.recorded['epoch'] + 1} of {source.config['recipe']['epochs']}"
    if source.arguments:
        first = {key: source.arguments[key] for key in RECIPE if key in source.arguments}
        others = {key: source.arguments[key] for key in sorted(source.arguments) if key not in first}
        for title, part in (("trained with", first), ("and", others)):
            if part:
                text = " ".join(f"{key}={value}" for key, value in part.items())
                yield textwrap.fill(f"{title} {text}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    if log := weights.read_authors_log(source.path):
        epoch, best = max(log, key=lambda line: line[1])
        yield f"summary.csv: test top-1 {best:g} in epoch {epoch} (best), {log[-1][1]:g} in epoch {log[-1][0]} (last)"


def table(measured: Mapping[str, float], recorded: Mapping[str, float]) -> str:
    """Return a table of the measures, beside the run's own records of the same weights."""
    columns = {"measured": measured} | ({"recorded": recorded} if recorded else {})
    rows = [[label, *(_number(values.get(key)) for values in columns.values())] for key, label in MEASURES.items()]
    return formats.render([formats.Table("", ["", *columns], rows)], "markdown")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def comparison(model: str, known: Mapping[str, Any], top1: float) -> str:
    """Return a table of the paper's rows that such a network could reproduce, with the notes on them.

    Args:
        model: name of the network.
        known: values of its training, by the names of `published.Row`.
        top1: measured top-1 accuracy, percent.
    """
    rows = [row for row in published.all_rows() if row.model == model]
    rows = [row for row in rows if all(getattr(row, key) == value for key, value in known.items())]
    if not rows:
        setting = ", ".join(f"{key} {value}" for key, value in known.items())
        return f"the paper has no row of {model}" + (f" with {setting}" if setting else "")
    columns: Sequence[Column[Row]] = (
        ("paper", lambda row: f"Table {row.table}, row {row.number}"),
        ("schedule", lambda row: row.schedule),
        ("batch", lambda row: str(row.batch)),
        ("method", lambda row: row.method),
        ("α", lambda row: f"{row.alpha:g}"),
        ("ε", lambda row: f"{row.label_smoothing:g}"),
        ("published", lambda row: f"{row.test_top1:g}"),
        ("README", lambda row: "" if row.readme_top1 is None else f"{row.readme_top1:g}"),
        ("measured − published", lambda row: f"{top1 - row.test_top1:+.3f}"),
        ("notes", lambda row: ", ".join(map(str, row.notes))),
    )
    text = formats.render([formats.table(rows, columns)], "markdown")
    notes = sorted({note for row in rows for note in row.notes})
    return "\n".join([text, *([""] if notes else []), *(f"{n}. {published.NOTES[n].text}" for n in notes)])
