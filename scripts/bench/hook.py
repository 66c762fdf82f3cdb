"""The gradient that the published listing computes, beside Eq. 9: the two tables of docs/method.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pgt.methods import AuthorsHookCrossEntropy, power_transform
from scripts.bench.results import table

CLASSES = 1000
SEED = 0

SCALE_CELLS = (
    (256, 65536), (256, 32768), (256, 16384), (256, 131072), (128, 65536), (128, 16384), (64, 65536), (64, 4096),
    (192, 32768), (256, 1),
)  # fmt: skip
"""(samples per process, loss scale), in float32 at α = 0.25 and a logit deviation of 3."""

DEVIATIONS = (3, 5, 10, 20)
ALPHAS = (0.3, 0.25, 0.05)
"""Logit deviations and α of the table of truncation in fp16, at N = 256 and S = N² = 65536."""


@dataclass(frozen=True)
class Error:
    """The error of the hook's gradient, unscaled, beside Eq. 9.

    Attributes:
        relative: ‖difference‖/‖Eq. 9‖; NaN if the hook gives NaN.
        gain: ‖hook‖/‖Eq. 9‖.
        flushed: share of the probabilities that the hook rounds to 0.
        nan_rows: samples whose gradient is NaN.
    """

    relative: float
    gain: float
    flushed: float
    nan_rows: int


def measure(samples: int, scale: float, alpha: float, deviation: float, dtype: torch.dtype) -> Error:
    """Measure the error for logits drawn from N(0, deviation²) and random labels, from a fixed seed.

    Args:
        samples: N.
        scale: S, by which the loss is multiplied.
        alpha: α.
        deviation: standard deviation of the logits.
        dtype: of the logits, and so of everything that the hook computes.
    """
    generator = torch.Generator().manual_seed(SEED)
    z = (deviation * torch.randn(samples, CLASSES, generator=generator)).to(dtype).requires_grad_()
    y = torch.randint(CLASSES, (samples,), generator=generator)
    loss = AuthorsHookCrossEntropy(alpha)
    (scale * loss(z, y)).backward()
    assert z.grad is not None
    assert loss.flushed is not None
    got = z.grad.double() / scale
    exact = power_transform(z.detach().double().softmax(1), alpha)
    exact[torch.arange(samples), y] -= 1
    exact /= samples
    norm = exact.norm()
    return Error(
        relative=((got - exact).norm() / norm).item(),
        gain=(got.norm() / norm).item(),
        flushed=loss.flushed.item(),
        nan_rows=int(got.isnan().any(1).sum()),
    )


def scale_table() -> list[list[str]]:
    """Return rows of N, S, S/N², result."""
    rows = []
    for samples, scale in SCALE_CELLS:
        error = measure(samples, scale, 0.25, 3.0, torch.float32)
        if error.nan_rows:
            result = f"NaN in {error.nan_rows} of {samples} rows"
        elif error.relative < 1e-3:
            result = "exact"
        else:
            result = f"error {error.relative:.2g}, gain {error.gain:.3g}"
        rows.append([f"{samples}", f"{scale}", f"{scale / samples**2:.2g}", result])
    return rows


def truncation_table() -> list[list[str]]:
    """Return rows of the logits' deviation, share flushed to 0, relative error for each of `ALPHAS`."""
    rows = []
    for deviation in DEVIATIONS:
        errors = [measure(256, 65536, alpha, deviation, torch.float16) for alpha in ALPHAS]
        assert not any(math.isnan(error.relative) for error in errors)
        flushed = f"{100 * errors[0].flushed:.0f}%"
        rows.append([f"{deviation}", flushed, *(f"{error.relative:.2g}" for error in errors)])
    return rows


def report() -> str:
    """Return both tables as Markdown."""
    return "\n\n".join([
        f"Float32, logits from N(0, 3²), C = {CLASSES}, α = 0.25:",
        table(scale_table(), ["N", "S", "S/N²", "logit gradient after unscaling, against Eq. 9"]),
        f"fp16, N = 256, S = 65536 = N², C = {CLASSES}; relative error against Eq. 9:",
        table(truncation_table(), ["std of the logits", "flushed to 0", *(f"α = {alpha}" for alpha in ALPHAS)]),
    ])  # fmt: skip


if __name__ == "__main__":
    print(report())
