"""Checks of what a machine computes: gradients, compiled gradients, and short trainings on all its devices."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess  # nosec B404  # only for this program itself
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pgt.tools.finding import BAD, NOTE, OK, Finding, judged, made
from pgt.tools.probe import first_device
from pgt.tools.weights import read_run
from pgt.training.folder import LAST
from pgt.training.ranks import check_kernels, visible_gpus

Trained: TypeAlias = tuple[Mapping[str, Tensor], float]
"""Weights and training loss."""
Train: TypeAlias = Callable[..., Trained]
"""(overrides of `pgt train`, environment variables as keywords) -> weights and training loss."""

ALPHA = 0.25
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Highest allowed error of the logits' gradient, relative to autograd's in float64: a few roundings."""
WEIGHTS = 1e-3
"""Highest allowed difference between the weights of two trainings in float32, relative to their norm. Rounding makes
1e-7 to 1e-4, as measured, since it may flip a ReLU; the training itself moves the weights by 0.017."""
LOSS = 0.01
"""Highest allowed relative difference of the training loss in 16 bits. Up to 0.0023 was measured; a network that is not
trained at all differs by 0.025."""
BATCH = 32
"""Samples of a step; it is rounded up to a multiple of the number of processes."""
KILLED_EPOCHS = 6
"""Epochs of the training that is killed after one of them."""
RESUMED = 1e-6
"""Highest allowed difference of weights after a training was resumed: it goes on bit for bit."""
MINUTES = 5.0
"""Time limit of a short training."""


def torch_and_gpus() -> Iterator[Finding]:
    """Report the versions of torch and CUDA, and the GPUs."""
    found = [torch.cuda.get_device_properties(index) for index in range(visible_gpus())]
    for index in range(len(found)):
        check_kernels(torch.device("cuda", index))
    version = f"{torch.__version__}, Python {sys.version.split()[0]}"
    if not found:
        yield Finding(NOTE, f"{version}, no GPU: runs train on the CPU")
        return
    names = sorted({gpu.name for gpu in found})
    memory = min(gpu.total_memory for gpu in found) / 2**30
    kind = f"{len(found)} x {names[0]}" if len(names) == 1 else f"{len(found)} GPUs"
    yield Finding(OK, f"{version}, CUDA {torch.version.cuda}, {kind}, {memory:.0f} GiB")
    if len(names) > 1:
        yield Finding(NOTE, f"GPUs of different kinds ({', '.join(names)}): the slowest sets the pace of a run on all")


def gradients() -> Iterator[Finding]:
    """Check PGT's gradient on every device, for logits in 32 and in 16 bits. Devices that are right share a line."""
    right: dict[torch.device, dict[torch.dtype, float]] = {}
    for device in [torch.device("cpu"), *(torch.device("cuda", index) for index in range(visible_gpus()))]:
        errors = {dtype: gradient_error(device, dtype) for dtype in TOLERANCES}
        if all(error <= TOLERANCES[dtype] for dtype, error in errors.items()):
            right[device] = errors
        else:
            yield Finding(BAD, f"{device}: {_off(errors)}: do not train with this torch on this device")
    if right:
        worst = {dtype: max(errors[dtype] for errors in right.values()) for dtype in TOLERANCES}
        yield Finding(OK, f"{', '.join(map(str, right))}: {_off(worst)}")


def _off(errors: Mapping[torch.dtype, float]) -> str:
    """Words about the errors of a gradient."""
    by_type = [f"{error:.0e} in {str(dtype).removeprefix('torch.')}" for dtype, error in errors.items()]
    return f"off autograd's in float64 by {', '.join(by_type)}"


def gradient_error(device: torch.device, dtype: torch.dtype) -> float:
    """Return the error of PGT's logit gradient, relative to the gradient of CE(α·z)/α by autograd in float64."""
    generator = torch.Generator().manual_seed(0)
    z = (3 * torch.randn(64, 1000, generator=generator)).to(dtype)
    y = torch.randint(1000, (64,), generator=generator)
    exact = z.double().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(ALPHA * exact, y) / ALPHA, exact)
    ours, scale = z.to(device).requires_grad_(), 2.0**16 if dtype == torch.float16 else 1.0
    (found,) = torch.autograd.grad(scale * power_grad_cross_entropy(ours, y.to(device), ALPHA), ours)
    return float((found.double().cpu() / scale - expected).norm() / expected.norm())


def compilation() -> Iterator[Finding]:
    """Check that torch.compile works."""
    device = first_device()
    z, y = torch.randn(16, 100, device=device, requires_grad=True), torch.arange(16, device=device)
    (expected,) = torch.autograd.grad(power_grad_cross_entropy(z, y, ALPHA), z)
    start = time.monotonic()
    logging.disable(logging.WARNING)  # torch may warn of a CUDA without a GPU
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
        f"{device}: the compiled gradient beside the uncompiled one ({time.monotonic() - start:.0f} s)",
        "they differ, leave trainer.compile=false",
    )


def trainings() -> Iterator[Finding]:
    """Train shortly in one CPU process, then in every other way that this machine offers, and compare."""
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
        f"{where} beside one CPU process: weights differ by {apart:.0e} of their norm (at most {WEIGHTS:.0e})",
        "see whether NCCL_P2P_DISABLE=1 changes it" if count > 1 and visible_gpus() else f"do not train with {where}",
    )


def _to_the_same_loss(where: str, count: int, precision: str, train: Train, reference: Trained) -> Iterator[Finding]:
    _, loss = train(f"trainer.devices={count}", f"trainer.precision={precision}")
    off = abs(loss / reference[1] - 1)
    yield judged(
        off <= LOSS,
        f"{where} in {precision}: the loss differs by {off:.2%} from float32's on the CPU (at most {LOSS:.0%})",
        "take another trainer.precision",
    )


def resuming() -> Iterator[Finding]:
    """Kill a training, resume it, and compare its weights with those of a training that nobody has killed."""
    words = (f"recipe.global_batch={BATCH}", "trainer.devices=1", "trainer.deterministic=true")
    with TemporaryDirectory() as name:
        whole, _ = trained(Path(name), *words, epochs=KILLED_EPOCHS)
        resumed, _ = trained(Path(name), *words, epochs=KILLED_EPOCHS, killed=True)
    apart = difference(resumed, whole)
    yield judged(
        apart <= RESUMED,
        f"killed and resumed beside not killed: weights differ by {apart:.0e} of their norm (at most {RESUMED:.0e})",
        "a run that is interrupted ends elsewhere; see whether the disk of the runs loses what is written",
    )


def trained(root: Path, *overrides: str, epochs: int = 1, killed: bool = False, **variables: str) -> Trained:
    """Train on the embedded digits by `pgt train` in a process of its own, since it may crash or hang.

    Args:
        root: folder for all that the process writes.
        overrides: of `pgt train`.
        epochs: how long to train.
        killed: kill the process when it has written a checkpoint, and let another one go on from there.
        variables: environment variables.

    Returns:
        Weights and training loss.

    Raises:
        InputError: the training fails, or takes longer than `MINUTES`.
    """
    folder = Path(mkdtemp(dir=root))
    schedule = (f"recipe.epochs={epochs}", "recipe.warmup_epochs=0")
    words = ["experiment=demo/nobn", "method=pgt", *schedule, *overrides]
    shown = [*(f"{key}={value}" for key, value in variables.items()), "pgt", "train", *words, "paths.runs=/tmp/doctor"]
    path = os.pathsep.join([str(Path(pgt.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    here = {"PYTHONPATH": path, "TMPDIR": str(folder)}  # run this pgt, and keep the files of a killed one in `root`
    here |= {"OMP_NUM_THREADS": "1"}  # more threads are hardly faster, and on a busy machine many times slower
    command, environment = [sys.executable, "-m", "pgt", "train", *words], {**os.environ, **here, **variables}
    first = kill_after_checkpoint(command, folder, environment) if killed else ""
    try:
        done = subprocess.run(  # nosec B603  # no shell, and fixed words
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60 * MINUTES
        )
    except subprocess.TimeoutExpired:
        hint = "; with NCCL_DEBUG=INFO before it, it may say why" if visible_gpus() else ""
        raise InputError(f"`{shlex.join(shown)}` has not ended within {MINUTES:g} minutes{hint}") from None
    if done.returncode:
        raise InputError(f"`{shlex.join(shown)}` fails: {reason(done.stderr) or f'exit code {done.returncode}'}")
    ((run, summary),) = runs.find(folder / "runs")
    if not (run / "metrics.jsonl").read_text().startswith(first):
        raise InputError("the killed training began anew: see whether the disk of the runs loses what is written")
    return read_run(run, "last").state, float(summary.train_loss or "nan")


def kill_after_checkpoint(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Start a training and kill it when it has written a checkpoint; returns the first record of its metrics.jsonl.

    Raises:
        InputError: it ends before.
    """
    deadline = time.monotonic() + 60 * MINUTES
    with subprocess.Popen(  # nosec B603  # no shell, and fixed words
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not [*folder.rglob(LAST)]:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise InputError("the training that was to be killed wrote no checkpoint")
                time.sleep(0.02)
        finally:
            process.kill()
    ((run, summary),) = runs.find(folder / "runs")
    if summary.status == runs.FINISHED:
        raise InputError("the training was over before it could be killed: try again")
    return (run / "metrics.jsonl").read_text().splitlines()[0]


def reason(errors: str) -> str:
    """Return the last line of a program's standard error that names an error; other lines may follow it."""
    lines = errors.strip().splitlines()
    named = [line for line in lines if re.match(r"pgt: |[\w.]*(Error|Exception)\b", line)]
    return (named or lines or [""])[-1].removeprefix("pgt: ")


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the norm of the difference between two networks' weights, relative to the norm of `b`."""
    apart = sum(float((a[key].double() - value.double()).square().sum()) for key, value in b.items())
    return float((apart / sum(float(value.double().square().sum()) for value in b.values())) ** 0.5)
