"""Whether this machine computes what it should: gradients, compiled ones, and a short training on all of it."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

import pgt
from pgt import runs
from pgt.errors import InputError
from pgt.methods import power_grad_cross_entropy
from pgt.tools.finding import NOTE, OK, Finding, judged
from pgt.training.distributed import check_kernels, visible_gpus

if TYPE_CHECKING:
    from torch import Tensor

ALPHA = 0.25
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of the logits' gradient, relative to autograd's in float64: some roundings."""
WEIGHTS = 1e-3
"""Norm of the difference between two trainings in float32, of the weights' norm: a ReLU that flips makes more of
rounding."""
LOSS = 0.05
"""Relative difference of the training loss in 16 bits."""
MINUTES = 5.0
"""That a short training may take."""


def torch_and_gpus() -> Iterator[Finding]:
    """What there is to compute with."""
    found = [torch.cuda.get_device_properties(index) for index in range(visible_gpus())]
    for index in range(len(found)):
        check_kernels(torch.device("cuda", index))
    version = f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    if not found:
        yield Finding(NOTE, f"{version}, no GPU: runs train on the CPU")
        return
    names = sorted({gpu.name for gpu in found})
    memory = min(gpu.total_memory for gpu in found) / 2**30
    kind = f"{len(found)} x {names[0]}" if len(names) == 1 else f"{len(found)} GPUs"
    yield Finding(OK, f"{version}, CUDA {torch.version.cuda}, {kind}, {memory:.0f} GiB")
    if len(names) > 1:
        yield Finding(NOTE, f"GPUs of different kinds ({', '.join(names)}): the slowest sets the pace of a run on all")


def devices() -> list[torch.device]:
    """The CPU and each GPU."""
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(visible_gpus()))]


def first_device() -> torch.device:
    """The first GPU, where there is one."""
    return devices()[:2][-1]


def gradients() -> Iterator[Finding]:
    """PGT's gradient on every device, in every precision."""
    for device in devices():
        errors = {dtype: gradient_error(device, dtype) for dtype in TOLERANCES}
        said = ", ".join(f"{str(dtype).removeprefix('torch.')} {error:.0e}" for dtype, error in errors.items())
        yield judged(
            all(error <= TOLERANCES[dtype] for dtype, error in errors.items()),
            f"{device}: PGT's error beside autograd in float64: {said}",
            "this torch or this device computes wrongly, leave it",
        )


def gradient_error(device: torch.device, dtype: torch.dtype) -> float:
    """Of PGT's logit gradient, relative to that of CE(α·z)/α by autograd in float64."""
    generator = torch.Generator().manual_seed(0)
    z = (3 * torch.randn(64, 1000, generator=generator)).to(dtype)
    y = torch.randint(1000, (64,), generator=generator)
    exact = z.double().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(ALPHA * exact, y) / ALPHA, exact)
    ours, scale = z.to(device).requires_grad_(), 2.0**16 if dtype == torch.float16 else 1.0
    (found,) = torch.autograd.grad(scale * power_grad_cross_entropy(ours, y.to(device), ALPHA), ours)
    return float((found.double().cpu() / scale - expected).norm() / expected.norm())


def compilation() -> Iterator[Finding]:
    """Whether torch.compile works."""
    device = first_device()
    z, y = torch.randn(16, 100, device=device, requires_grad=True), torch.arange(16, device=device)
    (expected,) = torch.autograd.grad(power_grad_cross_entropy(z, y, ALPHA), z)
    start = time.monotonic()
    logging.disable(logging.WARNING)  # torch's words about a CUDA without a GPU, say
    try:
        loss = torch.compile(lambda z: power_grad_cross_entropy(z, y, ALPHA))
        (found,) = torch.autograd.grad(loss(z), z)
    except Exception as error:  # no C++ compiler, no Python headers, no Triton, ...
        words = re.sub(r"\s+", " ", str(error))[:200]
        yield Finding(NOTE, f"torch.compile does not work here, leave trainer.compile=false ({words})")
        return
    finally:
        logging.disable(logging.NOTSET)
    yield judged(
        torch.allclose(found, expected, rtol=1e-4, atol=1e-7),
        f"{device}: PGT compiles ({time.monotonic() - start:.0f} s) to the same gradient",
        "no, to another one; leave trainer.compile=false",
    )


def trainings() -> Iterator[Finding]:
    """A short training by `pgt train` on one CPU process, beside each other way that there is here."""
    gpus = visible_gpus()
    most = max(gpus, 2)
    all_of_it = f"{gpus} GPUs" if gpus > 1 else "one GPU" if gpus else "2 CPU processes"
    counts = ({"one GPU": 1} if gpus > 1 else {}) | {all_of_it: gpus or 2}
    with TemporaryDirectory() as name:
        folder = Path(name)
        weights, expected = trained(folder / "reference", most, 1, {"CUDA_VISIBLE_DEVICES": ""})
        for where, count in counts.items():
            distance = difference(trained(folder / str(count), most, count)[0], weights)
            yield judged(
                distance <= WEIGHTS,
                f"{where} beside one CPU process: the weights differ by {distance:.0e} of their norm",
                f"more than {WEIGHTS:.0e}; between GPUs, see whether NCCL_P2P_DISABLE=1 changes it",
            )
        for precision in ("bf16", "fp16") if gpus else ():
            _, loss = trained(folder / precision, most, gpus, {}, f"trainer.precision={precision}")
            off = abs(loss / expected - 1)
            yield judged(
                off <= LOSS,
                f"{all_of_it} in {precision}: the loss differs by {off:.1%} from float32's",
                f"more than {LOSS:.0%}; take another trainer.precision",
            )


def trained(
    folder: Path, most: int, count: int, environment: Mapping[str, str] | None = None, *overrides: str
) -> tuple[Mapping[str, Tensor], float]:
    """Weights and training loss of an epoch on the embedded digits, by processes of their own, which may crash or hang.

    Args:
        folder: where the run is written.
        most: processes that any of the trainings has; they share one batch.
        count: processes of this one.
        environment: variables that are set for it.

    Raises:
        InputError: it fails, or takes longer than `MINUTES`.
    """
    from pgt.tools.weights import read_run

    environment = environment or {}
    words = ["experiment=demo/nobn", "method=pgt", "recipe.epochs=1", "recipe.warmup_epochs=0"]
    words += [f"recipe.global_batch={16 * most}", f"trainer.devices={count}", *overrides]
    shown = shlex.join([*(f"{key}={value}" for key, value in environment.items()), "pgt", "train", *words])
    command = [sys.executable, "-P", "-m", "pgt.cli", "train", *words, f"paths.runs={folder}"]
    path = os.pathsep.join([str(Path(pgt.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path, **environment}  # this pgt, not one that lies where the user stands
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60 * MINUTES)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"`{shown}` has not ended within {MINUTES:g} minutes; with NCCL_DEBUG=INFO before it, it may say why"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].removeprefix("pgt: ")
        raise InputError(f"`{shown}` fails: {reason}")
    ((run, summary),) = runs.find(folder)
    return read_run(run, "last").state, float(summary.train_loss or "nan")


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Norm of the difference between two networks' weights, of the norm of `b`."""
    apart = sum(float((a[key].double() - value.double()).square().sum()) for key, value in b.items())
    return float((apart / sum(float(value.double().square().sum()) for value in b.values())) ** 0.5)
