"""Minima of population losses against the exact frontier: their position, and their gap to it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefdag.reporting.figures.style import BLUE, GREY, INK, method_styles, new_figure, use_style

FAMILIES = {
    "pairs": "Losses of the difference of log-ratios",
    "absolute": "Losses of each response's log-ratio",
    "tokens": "Losses of tokens",
    "free": "No reference",
    "singles": "Single responses",
    "rankings": "Rankings",
    "own": "Your own",
    "policy": "Policy gradients",
    "online": "Pairs that the policy draws",
}
TOGETHER = 7  # runs in one panel
ACROSS = 3  # panels in a row
AT_ZERO = 1e-15  # shown in place of a gap below float64's resolution
AT_REST = 1e-6  # a gradient, as a share of the first one, above which a minimisation did not come to rest
DID_NOT_MOVE = 1e-3  # nats


def exact_frontier(points: pd.DataFrame, curve: pd.DataFrame) -> Figure:
    """Every setting's KL and reward on the frontier, a panel per family of losses, split where a family has many.

    points: columns run, family, kl, reward, gradient, a line per setting; curve: kl and reward of optimal policies.
    """
    panels = _panels(points)
    rows = -(-len(panels) // ACROSS)
    with use_style():
        figure = new_figure(13.0, 2.6 * rows + 0.3)
        grid = figure.subplots(rows, ACROSS, sharex=True, sharey=True, squeeze=False).flat
        for axes, (name, members) in zip(grid, panels, strict=False):
            _draw_panel(axes, members, curve)
            axes.set_title(name)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[: len(panels)][-ACROSS:]:
            axes.xaxis.set_tick_params(labelbottom=True)
        figure.supxlabel("KL(policy || reference), nats", fontsize=9)
        figure.supylabel("expected reward", fontsize=9)
    return figure


def _panels(points: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    panels = []
    for family in (family for family in FAMILIES if family in set(points["family"])):
        members = points[points["family"] == family]
        runs = list(dict.fromkeys(members["run"]))
        number = -(-len(runs) // TOGETHER)
        for at, part in enumerate(np.array_split(runs, number)):
            counted = f" ({at + 1} of {number})" if number > 1 else ""
            panels.append((FAMILIES[family] + counted, members[members["run"].isin(part)]))
    return panels


def _draw_panel(axes: Axes, members: pd.DataFrame, curve: pd.DataFrame) -> None:
    axes.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x * x))
    axes.plot(curve["kl"], curve["reward"], color=INK, linewidth=1.2, zorder=2, label="frontier")
    axes.set_xticks([0, 0.1, 0.5, 1, 2, 3, 5, 8])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(-0.003, 1.08 * curve["kl"].max())
    runs = list(dict.fromkeys(members["run"]))
    styles = {run: style for run, style in method_styles(runs).items() if run in runs}
    sizes = np.linspace(9, 4, len(runs))  # falling, so that runs with the same minima stay apart
    for (run, rows), size in zip(members.groupby("run", sort=False), sizes, strict=False):
        colour, marker = styles[str(run)]
        rest = rows["gradient"] <= AT_REST
        shape = {"marker": marker, "markersize": size, "linestyle": "none", "color": colour, "zorder": 4}
        filled = {"markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot([], [], label=run, **{**shape, "markersize": 6}, **filled)
        axes.plot(rows["kl"][rest], rows["reward"][rest], **shape, **filled)
        axes.plot(rows["kl"][~rest], rows["reward"][~rest], markerfacecolor="white", **shape)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.03), borderaxespad=0.2, handlelength=1.2)


def gaps(points: pd.DataFrame) -> Figure:
    """Every setting's gap to the frontier at its own KL, and that KL; runs from the smallest of their largest gaps on.

    Hollow: the minimisation did not come to rest. A gap below 1e-15 is shown at 1e-15.
    """
    runs = list(points.groupby("run")["gap"].max().sort_values(kind="stable").index)
    with use_style():
        figure = new_figure(8.2, 0.19 * len(runs) + 1.0)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
        for row, run in enumerate(runs):
            rows = points[points["run"] == run].dropna(subset=["gap"])
            gap = rows["gap"].clip(lower=AT_ZERO)
            left.plot([gap.min(), gap.max()], [row, row], color=BLUE, linewidth=1.2, alpha=0.4, zorder=2)
            fill = np.where(rows["gradient"] <= AT_REST, BLUE, "white")
            for axes, values in ((left, gap), (right, rows["kl"])):
                axes.scatter(values, [row] * len(rows), s=20, c=fill, edgecolors=BLUE, linewidths=0.9, zorder=3)
        left.set_xscale("log")
        left.axvspan(AT_ZERO / 3, 1e-8, color=GREY, alpha=0.12, linewidth=0, zorder=0)
        left.set_xlim(AT_ZERO / 3, 3)
        left.set_xlabel("reward missing to the frontier at the same KL")
        left.set_yticks(range(len(runs)), runs)
        left.set_ylim(len(runs) - 0.4, -0.6)
        right.set_xscale(
            "function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x * x)
        )
        right.set_xticks([0, 0.1, 0.5, 1, 2, 3, 5, 8])
        right.xaxis.set_major_formatter("{x:g}")
        right.set_xlim(-0.003, 1.08 * points["kl"].max())
        right.set_xlabel("KL(policy || reference), nats")
    return figure
