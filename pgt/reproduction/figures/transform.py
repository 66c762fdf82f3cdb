"""Fig. 2: the power transform of a distribution."""

from __future__ import annotations

from typing import Any

import numpy as np

from pgt.reproduction.figures.style import describe, pyplot

ALPHAS = (1.0, 0.75, 0.5, 0.25, 0.05, 0.0)


def distributions() -> Any:
    """Draw a distribution over ten classes and its power transforms, unordered and ordered."""
    logits = np.array([0.3, 1.9, -0.8, 1.1, 0.0, 2.6, -0.2, 1.5, -1.2, 0.7])
    plot = pyplot()
    figure, axes = plot.subplots(1, 2, figsize=(6.8, 3), sharey=True)
    for index, alpha in enumerate(ALPHAS):
        shade = plot.get_cmap("viridis")(index / len(ALPHAS))
        powers = np.exp(alpha * logits)
        p = powers / powers.sum()
        for axis, values in zip(axes, (p, np.sort(p)[::-1]), strict=True):
            axis.plot(range(1, len(p) + 1), values, "o-", color=shade, markersize=3.5, label=f"α = {alpha:g}")
    for axis, title, label in zip(axes, ("By class", "From likely to unlikely"), ("Class", "Rank"), strict=True):
        axis.axhline(1 / len(logits), color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel=label, xticks=range(1, len(logits) + 1))
    axes[0].set_ylabel(r"$p' = p^\alpha / \Sigma\, p^\alpha$")
    axes[1].legend()
    describe(
        figure,
        "The power transform flattens a distribution and keeps its order",
        "α = 1 leaves it as it is; α = 0 makes all classes equally likely (dotted: 1/10). Ten made-up logits.",
    )
    return figure
