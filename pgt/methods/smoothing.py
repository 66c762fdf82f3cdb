"""Label smoothing by the paper's convention and by PyTorch's.

Reference: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567; the
PGT paper's Eq. 7.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform_epsilon(epsilon: float, classes: int, smoothing: str) -> float:
    """The ε of the uniform convention that gives the same target distribution.

    Eq. 7 (`paper`) puts ε/(C−1) on each wrong class, the uniform convention ε/C on every class: the first
    is the second with ε·C/(C−1).

    Args:
        epsilon: in [0, 1].
        classes: C.
        smoothing: `paper` or `uniform`: the convention that `epsilon` is given in.

    Raises:
        ValueError: ε outside [0, 1], an unknown convention, or an ε of Eq. 7 that leaves the true class less
            than a wrong one (ε > 1 − 1/C).
    """
    check_smoothing(epsilon, smoothing)
    if smoothing == "uniform" or epsilon == 0:
        return epsilon
    if epsilon * classes > classes - 1:
        raise ValueError(f"label_smoothing {epsilon} leaves the true one of {classes} classes the least likely")
    return epsilon * classes / (classes - 1)


def check_smoothing(epsilon: float, smoothing: str) -> None:
    """Raise a ValueError unless ε lies in [0, 1] and the convention is known."""
    if not 0 <= epsilon <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {epsilon}")
    if smoothing not in ("paper", "uniform"):
        hint = "; ε itself goes in label_smoothing=..." if isinstance(smoothing, (int, float)) else ""
        raise ValueError(f"smoothing must be paper or uniform, got {smoothing!r}{hint}")


def smooth_labels(
    target: Tensor,
    classes: int,
    epsilon: float,
    smoothing: str = "uniform",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Class indices as a smoothed distribution q.

        paper (Eq. 7):  q_i = 1 − ε if i = y, else ε/(C−1)
        uniform:        q_i = 1 − ε + ε/C if i = y, else ε/C

    Args:
        target: class indices [N, ...].
        classes: C.
        epsilon: in [0, 1].
        smoothing: `paper` or `uniform`.
        dtype: of the result.

    Returns:
        [N, ..., C] in `dtype`; each row sums to one.

    Raises:
        ValueError: see `uniform_epsilon`.

    Examples:
        >>> smooth_labels(torch.tensor([1]), classes=3, epsilon=0.1, smoothing="paper")
        tensor([[0.0500, 0.9000, 0.0500]])
    """
    epsilon = uniform_epsilon(epsilon, classes, smoothing)
    return F.one_hot(target, classes).to(dtype) * (1 - epsilon) + epsilon / classes
