"""The league in one figure with a line per method, and frontiers with a panel per method."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prefdag.reporting.figures.frontier import (
    _scale,
    by_headline,
    draw_attainable,
    draw_best_of_n,
    draw_checkpoints,
    kl_label,
)
from prefdag.reporting.figures.style import BLUE, GREY, INK, ORANGE, VERMILLION, new_figure, use_style
from prefdag.reporting.tables import BEFORE_ALIGNMENT, title

PANELS_A_ROW = 6


def league_figure(table: pd.DataFrame, matched: tuple[float, ...], sft_reward: float, reward_label: str) -> Figure:
    """Reward at matched KL, displacement, length drift and time per step, all methods in the league's order.

    table: `league.league`. Whiskers are 95 % intervals over prompts; a method that never went as far as a matched KL
    has no mark there.
    """
    timed = table["seconds_per_step"].notna().any()
    with use_style():
        figure = new_figure(11.5, 1.1 + 0.21 * len(table))
        panels = figure.subplots(
            1, 4 if timed else 3, sharey=True, width_ratios=[3, 2.4, 1.6, 1.2][: 4 if timed else 3]
        )
        height = np.arange(len(table))[::-1]
        panels[0].set_yticks(height, [title(*names) for names in zip(table["method"], table["form"], strict=True)])
        panels[0].set_ylim(-0.8, len(table) - 0.2)
        _rewards(panels[0], table, height, matched, sft_reward, reward_label)
        _displaced(panels[1], table, height)
        _drift(panels[2], table, height)
        if timed:
            panels[3].scatter(1000 * table["seconds_per_step"], height, s=20, color=INK)
            panels[3].set_xlabel("time per step (ms)")
            panels[3].set_xlim(left=0)
    return figure


def _rewards(
    axes: Axes, table: pd.DataFrame, height: np.ndarray, matched: tuple[float, ...], sft: float, label: str
) -> None:
    axes.axvline(sft, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    offsets = np.linspace(0.17, -0.17, len(matched)) if len(matched) > 1 else np.zeros(1)
    for target, offset, colour, marker in zip(matched, offsets, (BLUE, VERMILLION, ORANGE), "osD", strict=False):
        name = f"reward_at_{target:g}"
        spread = [table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]
        axes.errorbar(
            table[name],
            height + offset,
            xerr=spread,
            fmt=marker,
            ms=4,
            color=colour,
            elinewidth=0.9,
            mec="white",
            mew=0.5,
        )
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", ms=4, label=f"at KL {target:g}")
        for target, colour, marker in zip(matched, (BLUE, VERMILLION, ORANGE), "osD", strict=False)
    ]
    handles.append(Line2D([], [], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), label="SFT"))
    _legend(axes, handles)
    axes.set_xlabel(label)


def _displaced(axes: Axes, table: pd.DataFrame, height: np.ndarray) -> None:
    axes.hlines(height, table["rejected_logratio"], table["chosen_logratio"], color="#bbbbbb", linewidth=1)
    for name, colour in (("chosen_logratio", BLUE), ("rejected_logratio", VERMILLION)):
        low, high = (table[f"{name}_{end}"].astype(float) for end in ("low", "high"))
        axes.hlines(height, low, high, color=colour, linewidth=0.9, alpha=0.7, zorder=2)
    axes.scatter(table["chosen_logratio"], height, s=22, color=BLUE, zorder=3)
    axes.scatter(table["rejected_logratio"], height, s=22, facecolor="white", edgecolor=VERMILLION, zorder=3)
    axes.axvline(0, color=GREY, linewidth=0.7, zorder=1)
    axes.set_xscale("symlog", linthresh=10)  # methods that push everything down would squeeze the others together
    axes.set_xticks([-300, -100, -30, -10, -5, 0, 5, 10], labels=["-300", "-100", "-30", "-10", "-5", "0", "5", "10"])
    ends = table[["chosen_logratio", "rejected_logratio"]].to_numpy(dtype=float)
    axes.set_xlim(min(-1.0, 1.15 * np.nanmin(ends, initial=0)), max(1.0, 1.15 * np.nanmax(ends, initial=0)))
    axes.set_xlabel("log-ratio of held-out responses (nats)")
    chosen = Line2D([], [], color=BLUE, marker="o", linestyle="none", ms=4.5, label="chosen")
    rejected = Line2D([], [], color=VERMILLION, marker="o", mfc="white", linestyle="none", ms=4.5, label="rejected")
    _legend(axes, [chosen, rejected])


def _drift(axes: Axes, table: pd.DataFrame, height: np.ndarray) -> None:
    drift = table["length_drift"]
    spread = [drift - table["length_drift_low"], table["length_drift_high"] - drift]
    axes.errorbar(drift, height, xerr=spread, fmt="o", ms=4, color=INK, elinewidth=0.9, mec="white", mew=0.5)
    axes.axvline(0, color=GREY, linewidth=0.7, zorder=1)
    axes.set_xlabel("length against SFT (tokens)")


def _legend(axes: Axes, handles: list[Line2D]) -> None:
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(handles), borderaxespad=0.2)


def frontiers(
    runs: pd.DataFrame,
    reward_label: str,
    checkpoints: pd.DataFrame | None = None,
    best_of_n: pd.DataFrame | None = None,
    attainable: pd.DataFrame | None = None,
) -> Figure:
    """A panel a loss: its settings in colour over all other runs in grey, on shared axes; Best-of-N in each.

    runs: columns run, method, form, group, reward, reward_low, reward_high, kl, kl_se.
    checkpoints, best_of_n, attainable: as in `frontier`.
    """
    checkpoints = runs.iloc[:0] if checkpoints is None else checkpoints
    pool = by_headline(best_of_n)
    aligned = runs[~runs["run"].isin(BEFORE_ALIGNMENT)]
    methods = list(dict.fromkeys(zip(aligned["method"], aligned["form"], strict=True)))
    columns = min(PANELS_A_ROW, len(methods))
    rows = -(-len(methods) // columns)
    start = runs[runs["run"] == "sft"]
    sft = start.iloc[0]
    with use_style():
        figure = new_figure(0.6 + 1.75 * columns, 0.6 + 1.55 * rows)
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in panels[len(methods) :]:
            axes.set_visible(False)
        _scale(panels[0], aligned["kl"], room=0.18)
        for axes, method in zip(panels, methods, strict=False):
            members = aligned[(aligned["method"] == method[0]) & (aligned["form"] == method[1])]
            axes.axhline(sft["reward"], color=GREY, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)
            axes.scatter(aligned["kl"], aligned["reward"], s=5, color="#cccccc", zorder=2, linewidths=0)
            draw_best_of_n(axes, pool, named=False)
            draw_attainable(axes, attainable)
            draw_checkpoints(axes, members, checkpoints, BLUE, start)
            centres = members.groupby("group", sort=False)[["kl", "reward"]].mean().sort_values("kl")
            path = pd.concat([pd.DataFrame({"kl": [0.0], "reward": [sft["reward"]]}), centres])
            axes.plot(path["kl"], path["reward"], color=BLUE, linewidth=1.1, alpha=0.6, zorder=3)
            spread = [members["reward"] - members["reward_low"], members["reward_high"] - members["reward"]]
            wide = [np.minimum(1.96 * members["kl_se"], members["kl"].clip(lower=0)), 1.96 * members["kl_se"]]
            bars = {"fmt": "o", "ms": 3.5, "color": BLUE, "elinewidth": 0.8, "zorder": 4}
            axes.errorbar(members["kl"], members["reward"], spread, wide, **bars)
            axes.set_title(title(*method), fontsize=8)
        for axes in panels[: len(methods)][-columns:]:
            axes.xaxis.set_tick_params(labelbottom=True)  # also above an empty place
        figure.supxlabel(kl_label(panels[0]), fontsize=9)
        figure.supylabel(reward_label, fontsize=9)
    return figure
