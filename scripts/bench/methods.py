"""Cost of a training step with each method, beside the baseline's: time, and what is kept for the backward pass."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from pgt.config.compose import compose_all
from pgt.core.types import Batch
from pgt.tools.probe import Case, Steps, first_device, seconds_a_step
from pgt.training.assemble import assemble, set_up_torch
from pgt.training.job import open_data
from pgt.training.ranks import ALONE
from pgt.training.trainer import Trainer
from scripts.bench.results import Result, each_that_fits, entry, in_turns, machine, options, show, table

METHODS = ("baseline", "pgt", "gc", "agc", "amplification", "amplification_per_weight", "gcw", "gcode", "gcgd")
"""Names of the config group; the first is what the others are compared with."""


def steps(trainer: Trainer, batch: Batch) -> Steps:
    """Return the training steps of `pgt train` on one batch. They go on counting, as methods that look back need."""
    done = 0

    def loop(count: int) -> None:
        nonlocal done
        for step in range(done, done + count):
            trainer.train_step([batch], step)
        done += count

    return loop


def build(case: Case, method: str) -> tuple[Trainer, Batch]:
    """Return a trainer with a method, as a config makes it, and a batch of random images."""
    [config] = compose_all(
        [f"model={case.network}", f"method={method}", "data=synthetic",
         f"data.num_samples={case.batch}", f"data.image_size={case.size}", "data.num_classes=20",
         f"recipe.global_batch={case.batch}", f"recipe.local_batch={case.batch}", f"trainer.precision={case.precision}"]
    )  # fmt: skip
    set_up_torch(config)
    torch.manual_seed(0)
    loader, _, trainer = assemble(config, open_data(config), ALONE)
    trainer.model.train()
    return trainer, next(iter(loader.epoch(0)))


def kept(trainer: Trainer, batch: Batch) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in [*trainer.model.parameters(), *trainer.model.buffers()]}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), trainer.precision.autocast():
        trainer.loss(trainer.model(batch.images), batch.labels)
    return sum(found.values())


def measure(case: Case, rounds: int, length: int, results: list[Result]) -> str:
    """Measure every method on one case.

    Returns:
        A Markdown table: median time of a step, its ratio to the baseline's within a round with the quartiles of the
        rounds, and the mebibytes kept.
    """
    device = first_device()
    loops, memory = {}, {}
    for method in METHODS:
        trainer, batch = build(case, method)
        loops[method] = steps(trainer, batch)
        loops[method](3)
        for alteration in trainer.alterations:
            alteration.end_epoch(0)  # amplification chooses its layers
        memory[method] = kept(trainer, batch)
    times = in_turns(rounds, {name: partial(seconds_a_step, loop, length, device) for name, loop in loops.items()})
    what = {"network": case.network, "batch": case.batch, "size": case.size, "precision": case.precision}
    rows = []
    for method, measured in times.items():
        middle = statistics.median(measured)
        speed, mebibytes = case.batch / middle, memory[method] / 2**20
        results.append(entry("methods", what, method, machine(device), images_per_second=speed, mebibytes=mebibytes))
        low, ratio, high = statistics.quantiles([a / b for a, b in zip(measured, times[METHODS[0]], strict=True)], n=4)
        rows.append([method, f"{1e3 * middle:.1f}", f"{ratio:.3f}", f"{low:.3f} to {high:.3f}",
                     f"{mebibytes:,.0f}"])  # fmt: skip
    title = (
        f"{case.network}, {case.batch} images of {case.size} pixels, {case.precision}; {rounds} rounds of {length} "
        f"steps in turns, on {machine(device)}"
    )
    return f"{title}\n\n{table(rows, ['method', 'ms a step', '× baseline', 'quartiles', 'MiB kept'])}"


def cases() -> Iterator[Case]:
    """Yield the paper's networks on a GPU; network, images and precision of experiment=tiny/methods on any machine."""
    if torch.cuda.is_available():
        yield from [Case("resnet18", 256, 224, "fp16"), Case("resnet50", 256, 224, "fp16")]
    yield Case("resnet20", 128, 32, "bf16")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=10, help="steps of a method in a round (default: 10)")
    given, results = parser.parse_args(arguments), list[Result]()
    text = each_that_fits(cases(), lambda case: measure(case, given.rounds, given.steps, results))
    show(text, results, given.json)


if __name__ == "__main__":
    main()
