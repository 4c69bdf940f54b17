"""Training curves: a panel a method, a colour a setting."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prefdag.figures import GREY, INK, look, new_figure, shades
from prefdag.tables import title

PANELS_A_ROW = 3
QUANTITIES = {"loss": "loss", "margin": "margin (nats)", "accuracy": "accuracy"}
LINES: dict[str, Any] = {"chosen": "-", "rejected": (0, (3, 1.5))}


def logratios(curves: Mapping[str, pd.DataFrame], runs: pd.DataFrame) -> Figure:
    """Log-ratios of held-out chosen (solid) and rejected (dashed) responses over steps, whatever the loss reads.

    curves: run -> step, held_out_chosen_logratio, held_out_rejected_logratio (means of summed log-ratios in nats, NaN
    where not measured). runs: columns run, method, group, label.
    """
    methods = _methods(curves, runs)
    columns = min(PANELS_A_ROW, len(methods))
    rows = -(-len(methods) // columns)
    with look():
        figure = new_figure(1.2 + 2.5 * columns, 0.5 + 2.35 * rows)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(methods) :]:
            axes.set_visible(False)
        for axes, method in zip(panels, methods, strict=False):
            members = _members(curves, runs, method)
            for run, colour in zip(members["run"], _colours(members), strict=True):
                for side, dashes in LINES.items():
                    _draw(axes, curves[run], f"held_out_{side}_logratio", colour, dashes)
            axes.axhline(0, color=GREY, linewidth=0.7, zorder=1)
            axes.set_ylabel("log-ratio to SFT (nats)")
            axes.set_xlabel("optimizer step")
            _settings_legend(axes, members)
        sides = [Line2D([], [], color=INK, linestyle=dashes, label=side) for side, dashes in LINES.items()]
        figure.legend(handles=sides, loc="outside upper right", ncols=2)
    return figure


def training(curves: Mapping[str, pd.DataFrame], runs: pd.DataFrame) -> Figure:
    """Loss, margin and accuracy on the training batches over steps: a row a method, as losses cannot be compared."""
    methods = _methods(curves, runs)
    with look():
        figure = new_figure(8.2, 0.3 + 1.9 * len(methods))
        panels = figure.subplots(len(methods), len(QUANTITIES), squeeze=False, sharex="row")
        for axes in panels[:, -1]:
            axes.sharey(panels[0, -1])  # accuracies of all methods are on one scale
        for row, method in zip(panels, methods, strict=True):
            members = _members(curves, runs, method)
            for axes, (column, label) in zip(row, QUANTITIES.items(), strict=True):
                axes.set_ylabel(label)
                if not _has(curves, members, column):
                    axes.set_visible(False)
                    continue
                for run, colour in zip(members["run"], _colours(members), strict=True):
                    _draw(axes, curves[run], column, colour, "-")
                if column == "accuracy":
                    axes.axhline(0.5, color=GREY, linewidth=0.7, zorder=1)
            _settings_legend(row[0], members)
        for axes in panels[-1]:
            axes.set_xlabel("optimizer step")
    return figure


def smoothed(values: pd.Series) -> pd.Series:
    """Centred mean over a twentieth of the steps: light enough to keep every turn, and it shifts none."""
    window = max(1, len(values) // 20) | 1
    return values.rolling(window, center=True, min_periods=1).mean()


def _draw(axes: Axes, curve: pd.DataFrame, column: str, colour: tuple, dashes: object) -> None:
    if column in curve:  # nothing is held out where a suite has no validation split
        curve = curve.dropna(subset=[column])
        axes.plot(curve["step"], curve[column], color=colour, linewidth=0.5, alpha=0.22, zorder=2)
        axes.plot(curve["step"], smoothed(curve[column]), color=colour, linewidth=1.3, linestyle=dashes, zorder=3)


def _methods(curves: Mapping[str, pd.DataFrame], runs: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(runs["method"][runs["run"].isin(curves)]))


def _members(curves: Mapping[str, pd.DataFrame], runs: pd.DataFrame, method: str) -> pd.DataFrame:
    return runs[(runs["method"] == method) & runs["run"].isin(curves)]


def _has(curves: Mapping[str, pd.DataFrame], members: pd.DataFrame, column: str) -> bool:
    return any(column in curves[run] and np.isfinite(curves[run][column]).any() for run in members["run"])


def _colours(members: pd.DataFrame) -> list:
    """A colour for each run: seeds of one setting share theirs."""
    groups = list(dict.fromkeys(members["group"]))
    return [shades(len(groups))[groups.index(group)] for group in members["group"]]


def _settings_legend(axes: Axes, members: pd.DataFrame) -> None:
    """The method as the panel's title and, above the data, the colour of each setting."""
    labels = dict(zip(members["label"], _colours(members), strict=True))
    axes.set_title(title(members["method"].iloc[0]), pad=16)
    if len(labels) > 1:
        handles = [Line2D([], [], color=colour, linewidth=1.8, label=label) for label, colour in labels.items()]
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(-0.02, 0.98),
            ncols=len(handles),
            fontsize=6.5,
            handlelength=0.9,
            handletextpad=0.3,
            columnspacing=0.7,
            borderaxespad=0,
        )
