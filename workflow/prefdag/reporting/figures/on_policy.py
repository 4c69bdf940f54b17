"""On-policy training: reward against KL along training, and what each round measures."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefdag.reporting.figures.style import new_figure, shades, use_style

QUANTITIES = {
    "score": "score",
    "kl": "KL (nats)",
    "entropy": "entropy (nats)",
    "length": "tokens",
}


def training(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Plot score against KL along training, and score, KL, entropy and length by round.

    curves: run -> step, score, length and, with a reference, kl and entropy.
    """
    with use_style():
        figure = new_figure(8.2, 4.6)
        grid = figure.add_gridspec(2, 4)
        path = figure.add_subplot(grid[:, :2])
        panels = [figure.add_subplot(grid[number // 2, 2 + number % 2]) for number in range(4)]
        for (run, curve), colour in zip(curves.items(), shades(len(curves)), strict=True):
            smooth = smoothed(curve)
            if "kl" in curve:
                path.plot(smooth["kl"], smooth["score"], color=colour, linewidth=1.4, label=run)
                path.plot(smooth["kl"].iloc[-1], smooth["score"].iloc[-1], "o", color=colour, markersize=4)
            for axes, column in zip(panels, QUANTITIES, strict=True):
                if column in curve:
                    axes.plot(curve["step"], smooth[column], color=colour, linewidth=1.2)
        path.set_xlabel("KL to the reference (nats)")
        path.set_ylabel("score")
        figure.legend(loc="outside lower center", ncols=4, fontsize=7)
        _label(panels)
    return figure


def _label(panels: list[Axes]) -> None:
    for axes, label in zip(panels, QUANTITIES.values(), strict=True):
        axes.set_title(label, fontsize=7)
    for axes in panels[2:]:
        axes.set_xlabel("round")


def smoothed(curve: pd.DataFrame) -> pd.DataFrame:
    """Return centred means over a tenth of the rounds; rounds without a value are left out of a mean."""
    window = max(1, len(curve) // 10) | 1
    numbers = curve.select_dtypes(np.number)
    return numbers.rolling(window, center=True, min_periods=1).mean()
