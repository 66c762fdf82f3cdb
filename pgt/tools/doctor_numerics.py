"""Whether this machine computes what it should: gradients, compiled ones, and a short training on all of it."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

import pgt
from pgt.core.errors import InputError
from pgt.methods import power_grad_cross_entropy
from pgt.runs import folder as runs
from pgt.tools.finding import NOTE, OK, Finding, judged, made
from pgt.training.ranks import check_kernels, visible_gpus

Trained: TypeAlias = tuple[Mapping[str, Tensor], float]
"""Weights and training loss."""
Train: TypeAlias = Callable[..., Trained]

ALPHA = 0.25
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of the logits' gradient, relative to autograd's in float64: some roundings."""
WEIGHTS = 1e-3
"""Difference between two trainings in float32, of the weights' norm: measured 1e-7 to 1e-4 for rounding, which a ReLU
that flips makes more of; the training itself moves them by 0.017."""
LOSS = 0.01
"""Relative difference of the training loss in 16 bits, measured up to 0.0023; without training it is 0.025."""
BATCH = 32
"""Samples of a step, or as many more as the processes can share."""
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
    """PGT's gradient on every device, of logits in 32 and in 16 bits."""
    for device in devices():
        errors = {dtype: gradient_error(device, dtype) for dtype in TOLERANCES}
        said = ", ".join(
            f"{str(dtype).removeprefix('torch.')} {error:.0e} (at most {TOLERANCES[dtype]:.0e})"
            for dtype, error in errors.items()
        )
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
    all_of_it = f"{gpus} GPUs" if gpus > 1 else "one GPU" if gpus else "2 CPU processes"
    counts = ({"one GPU": 1} if gpus > 1 else {}) | {all_of_it: gpus or 2}
    most = max(counts.values())
    batch = f"recipe.global_batch={-(-BATCH // most) * most}"
    with TemporaryDirectory() as name:
        train = partial(trained, Path(name), batch)
        reference = train("trainer.devices=1", CUDA_VISIBLE_DEVICES="")
        for where, count in counts.items():
            yield from made(partial(_to_the_same_weights, where, count, train, reference))
        for precision in ("bf16", "fp16") if gpus else ():
            yield from made(partial(_to_the_same_loss, all_of_it, gpus, precision, train, reference))


def _to_the_same_weights(where: str, count: int, train: Train, reference: Trained) -> Iterator[Finding]:
    weights, _ = train(f"trainer.devices={count}")
    apart = difference(weights, reference[0])
    yield judged(
        apart <= WEIGHTS,
        f"{where} beside one CPU process: the weights differ by {apart:.0e} (at most {WEIGHTS:.0e}) of their norm",
        "see whether NCCL_P2P_DISABLE=1 changes it" if count > 1 and visible_gpus() else "do not train so",
    )


def _to_the_same_loss(where: str, count: int, precision: str, train: Train, reference: Trained) -> Iterator[Finding]:
    _, loss = train(f"trainer.devices={count}", f"trainer.precision={precision}")
    off = abs(loss / reference[1] - 1)
    yield judged(
        off <= LOSS,
        f"{where} in {precision}: the loss differs by {off:.2%} (at most {LOSS:.0%}) from float32's on the CPU",
        "take another trainer.precision",
    )


def trained(root: Path, *overrides: str, **variables: str) -> Trained:
    """Weights and loss of an epoch on the embedded digits, by processes of their own, which may crash or hang.

    Args:
        root: a folder that takes all that they write.
        overrides: of `pgt train`.
        variables: of their environment.

    Raises:
        InputError: they fail, or take longer than `MINUTES`.
    """
    from pgt.tools.weights import read_run

    folder = Path(mkdtemp(dir=root))
    words = ["experiment=demo/nobn", "method=pgt", "recipe.epochs=1", "recipe.warmup_epochs=0", *overrides]
    shown = [*(f"{key}={value}" for key, value in variables.items()), "pgt", "train", *words, "paths.runs=/tmp/doctor"]
    path = os.pathsep.join([str(Path(pgt.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    here = {"PYTHONPATH": path, "TMPDIR": str(folder)}  # this pgt; what a killed one leaves goes with the folder
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pgt.cli", "train", *words],
            cwd=folder,
            env={**os.environ, **here, **variables},
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
        )
    except subprocess.TimeoutExpired:
        hint = "; with NCCL_DEBUG=INFO before it, it may say why" if visible_gpus() else ""
        raise InputError(f"`{shlex.join(shown)}` has not ended within {MINUTES:g} minutes{hint}") from None
    if done.returncode:
        raise InputError(f"`{shlex.join(shown)}` fails: {_reason(done.stderr) or f'exit code {done.returncode}'}")
    ((run, summary),) = runs.find(folder / "runs")
    return read_run(run, "last").state, float(summary.train_loss or "nan")


def _reason(errors: str) -> str:
    """The line of what a program has said that names the error; others may follow it."""
    lines = errors.strip().splitlines()
    named = [line for line in lines if re.match(r"pgt: |[\w.]*(Error|Exception)\b", line)]
    return (named or lines or [""])[-1].removeprefix("pgt: ")


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Norm of the difference between two networks' weights, of the norm of `b`."""
    apart = sum(float((a[key].double() - value.double()).square().sum()) for key, value in b.items())
    return float((apart / sum(float(value.double().square().sum()) for value in b.values())) ** 0.5)
