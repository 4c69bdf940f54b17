"""Training curves of runs (a panel per loss, a colour per setting), of the reward model and of implicit rewards."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prefdag.evaluation.bootstrap import wilson
from prefdag.reporting.figures.style import BLUE, GREY, INK, VERMILLION, new_figure, shades, use_style
from prefdag.reporting.tables import title

PANELS_A_ROW = 3
MANY = 12  # methods with panels of full size; more methods get small ones
PANELS_OF_MANY = 6
PROBED = 48  # held-out comparisons that a training watches (`training.preference_metrics`, which needs torch)
LEGEND_WIDTH = 48  # characters of a legend above a panel, of which each entry has four for its line and the space
QUANTITIES = {"loss": "loss", "margin": "margin", "accuracy": "accuracy"}
OF_SUMS, OF_MEANS = "margin of sums (nats)", "margin of means\n(nats a token)"  # with a reference, and without
NOT_COMPARED = "the loss reads\nsingle responses"  # why a training has no margin and no accuracy
SIDES = {"chosen": ("better response", BLUE), "rejected": ("worse response", VERMILLION)}
LINES: dict[str, Any] = {"chosen": "-", "rejected": (0, (3, 1.5))}


def logratios(curves: Mapping[str, pd.DataFrame], runs: pd.DataFrame) -> Figure:
    """Plot log-ratios of held-out chosen (solid) and rejected (dashed) responses over steps, for every loss.

    curves: run -> step, held_out_chosen_logratio, held_out_rejected_logratio (means of summed log-ratios in nats, NaN
    where not measured). runs: columns run, method, group, label.
    """
    with use_style():
        figure, panels = _panels(curves, runs)
        for axes, members in panels:
            for run, colour in zip(members["run"], setting_colours(members), strict=True):
                for side, dashes in LINES.items():
                    _draw(axes, curves[run], f"held_out_{side}_logratio", colour, dashes)
            axes.axhline(0, color=GREY, linewidth=0.7, zorder=1)
        figure.supylabel("log-ratio to SFT (nats)", fontsize=9)
        sides = [Line2D([], [], color=INK, linestyle=dashes, label=side) for side, dashes in LINES.items()]
        figure.legend(handles=sides, loc="outside upper right", ncols=2)
    return figure


def displacement(curves: Mapping[str, pd.DataFrame], runs: pd.DataFrame, prompts: Sequence[int]) -> Figure | None:
    """Plot the share of held-out pairs whose chosen response became less likely than under SFT; 95% Wilson intervals.

    curves: run -> step, held_out_chosen_fell (a share of the first validation pairs, at most PROBED). prompts: the
    prompt of each validation pair; pairs of one prompt count as one draw. None where nothing was held out.
    """
    number = len(set(prompts[:PROBED]))
    column = "held_out_chosen_fell"
    curves = {run: curve for run, curve in curves.items() if column in curve}
    if not number or not curves:
        return None
    with use_style():
        figure, panels = _panels(curves, runs, sharey=True)
        for axes, members in panels:
            axes.axhline(50, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            shade = max(0.05, 0.18 / len(members))
            for run, colour in zip(members["run"], setting_colours(members), strict=True):
                known = curves[run].dropna(subset=[column])
                low, high = wilson(known[column].to_numpy(), number)
                axes.fill_between(known["step"], 100 * low, 100 * high, color=colour, alpha=shade, lw=0, zorder=2)
                axes.plot(known["step"], 100 * known[column], color=colour, linewidth=1.3, zorder=3)
            axes.set_ylim(-2, 102)
            axes.yaxis.set_major_formatter("{x:g}%")
        figure.supylabel("held-out pairs whose chosen response fell", fontsize=9)
    return figure


def _panels(
    curves: Mapping[str, pd.DataFrame], runs: pd.DataFrame, sharey: bool = False
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A figure over optimizer steps with a panel and the runs of each method: small ones where methods are many."""
    members = _losses(curves, runs)
    many = len(members) > MANY
    columns = min(PANELS_OF_MANY if many else PANELS_A_ROW, len(members))
    rows = -(-len(members) // columns)
    size = (0.6 + 1.9 * columns, 0.8 + 1.55 * rows) if many else (1.2 + 2.5 * columns, 0.5 + 2.2 * rows)
    figure = new_figure(*size)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()
    for spare in axes[len(members) :]:
        spare.set_visible(False)
    for panel, runs_of_method in zip(axes, members, strict=False):
        settings_legend(panel, _name(runs_of_method), runs_of_method, named=not many)
    figure.supxlabel("optimizer step", fontsize=9)
    return figure, list(zip(axes, members, strict=False))


def training(curves: Mapping[str, pd.DataFrame], runs: pd.DataFrame) -> Figure:
    """Plot loss, margin and accuracy on training batches over steps: a row per method, as losses are not comparable."""
    losses = _losses(curves, runs)
    with use_style():
        figure = new_figure(8.2, 0.3 + 1.9 * len(losses))
        panels = figure.subplots(len(losses), len(QUANTITIES), squeeze=False, sharex="row")
        for axes in panels[:, -1]:
            axes.sharey(panels[0, -1])  # accuracies of all methods are on one scale
        for row, members in zip(panels, losses, strict=True):
            for axes, (column, label) in zip(row, QUANTITIES.items(), strict=True):
                axes.set_ylabel(_margin(curves, members) if column == "margin" else label)
                if not _has(curves, members, column):
                    axes.set_axis_off()
                    axes.text(0.5, 0.5, f"no {column}: {NOT_COMPARED}", ha="center", va="center", color=GREY)
                    continue
                for run, colour in zip(members["run"], setting_colours(members), strict=True):
                    _draw(axes, curves[run], column, colour, "-")
                if column == "accuracy":
                    axes.axhline(0.5, color=GREY, linewidth=0.7, zorder=1)
            settings_legend(row[0], _name(members), members)
        for axes in panels[-1]:
            axes.set_xlabel("optimizer step")
    return figure


def _margin(curves: Mapping[str, pd.DataFrame], members: pd.DataFrame) -> str:
    """Return the label of a loss's margins: of summed log-ratios where its curves have some, else of averages."""
    return OF_SUMS if any("chosen_logratio" in curves[run] for run in members["run"]) else OF_MEANS


def smoothed(values: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Centred mean over a twentieth of the steps, and half of its 95% interval, batches taken as independent.

    Light enough to keep every turn, and it shifts none. Nan where a window has one batch.
    """
    window = values.rolling(max(1, len(values) // 20) | 1, center=True, min_periods=1)
    return window.mean(), 1.96 * window.std() / np.sqrt(window.count())


def draw_batches(axes: Axes, steps: pd.Series, values: pd.Series, colour: Any, dashes: object = "-") -> None:
    """Every training batch, light; their moving mean, and its interval as a band."""
    mean, half = smoothed(values)
    axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.22, zorder=2)
    axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.18, lw=0, zorder=2)
    axes.plot(steps, mean, color=colour, linewidth=1.3, linestyle=dashes, zorder=3)


def _draw(axes: Axes, curve: pd.DataFrame, column: str, colour: tuple, dashes: object) -> None:
    if column in curve:  # nothing is held out where a suite has no validation split
        curve = curve.dropna(subset=[column])
        draw_batches(axes, curve["step"], curve[column], colour, dashes)


def _losses(curves: Mapping[str, pd.DataFrame], runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the runs of each loss that has curves: of a method, or of each choice that its settings differ in."""
    trained = runs[runs["run"].isin(curves)]
    return [members for _, members in trained.groupby(["method", "form"], sort=False)]


def _name(members: pd.DataFrame) -> str:
    """Return the name of a loss, with the choices that tell it from others of its method."""
    return title(members["method"].iloc[0], members["form"].iloc[0])


def _has(curves: Mapping[str, pd.DataFrame], members: pd.DataFrame, column: str) -> bool:
    return any(column in curves[run] and np.isfinite(curves[run][column]).any() for run in members["run"])


def setting_colours(members: pd.DataFrame) -> list:
    """A colour for each run: seeds of one setting share theirs."""
    groups = list(dict.fromkeys(members["group"]))
    return [shades(len(groups))[groups.index(group)] for group in members["group"]]


def settings_legend(axes: Axes, name: str, members: pd.DataFrame, named: bool = True) -> None:
    """The name as the panel's title and, above the data, the colour of each setting."""
    labels = dict(zip(members["label"], setting_colours(members), strict=True))
    columns = min(len(labels), max(1, LEGEND_WIDTH // (max(map(len, labels)) + 4)))
    rows = -(-len(labels) // columns)
    axes.set_title(name, pad=6 + 10 * rows if named and len(labels) > 1 else None)
    if named and len(labels) > 1:
        handles = [Line2D([], [], color=colour, linewidth=1.8, label=label) for label, colour in labels.items()]
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(-0.02, 0.98),
            ncols=columns,
            fontsize=6.5,
            handlelength=0.9,
            handletextpad=0.3,
            columnspacing=0.7,
            labelspacing=0.2,
            borderaxespad=0,
        )


def reward_training(curve: pd.DataFrame) -> Figure:
    """Loss, accuracy and learning rate of the reward model's training over its optimizer steps.

    curve: step, loss, accuracy, learning_rate. Trainings of several seeds follow one another.
    """
    with use_style():
        figure = new_figure(8.2, 2.3)
        panels = figure.subplots(1, 3)
        for axes, (column, label) in zip(panels, (("loss", "loss"), ("accuracy", "accuracy")), strict=False):
            draw_batches(axes, curve["step"], curve[column], BLUE)
            axes.set_ylabel(f"{label}, training batch")
        panels[0].axhline(np.log(2), color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        panels[1].axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        panels[2].plot(curve["step"], curve["learning_rate"], color=BLUE, linewidth=1.4)
        panels[2].ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
        panels[2].set_ylim(bottom=0)
        panels[2].set_ylabel("learning rate")
        for axes in panels:
            axes.set_xlabel("optimizer step")
    return figure


def implicit_rewards(curves: Mapping[str, pd.DataFrame], betas: Mapping[str, float]) -> Figure | None:
    """Beta times the summed log-ratio to SFT, of better and of worse responses in panels of their own, a row a run.

    curves: what the run is called -> its curves; betas: likewise. Runs without beta or log-ratios are left out. Lines:
    training batches, their moving mean and its 95% interval; dots: the same held-out comparisons each time.
    """
    curves = {name: curve for name, curve in curves.items() if name in betas and "chosen_logratio" in curve}
    if not curves:
        return None
    with use_style():
        figure = new_figure(7.4, 0.4 + 2.1 * len(curves))
        panels = figure.subplots(len(curves), 2, squeeze=False, sharex="row", sharey="row")
        for row, (name, curve) in zip(panels, curves.items(), strict=True):
            for axes, (side, (label, colour)) in zip(row, SIDES.items(), strict=True):
                rewards = betas[name] * curve[f"{side}_logratio"]
                draw_batches(axes, curve["step"], rewards, colour)
                held_out = curve[["step", f"held_out_{side}_logratio"]].dropna() if _measured(curve) else None
                if held_out is not None:
                    values = betas[name] * held_out[f"held_out_{side}_logratio"]
                    axes.plot(held_out["step"], values, "o", color=INK, markersize=3.5, markerfacecolor="white")
                axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
                axes.set_title(f"{name}: {label}", fontsize=8.5)
                axes.set_xlabel("optimizer step")
            row[0].set_ylabel("implicit reward β log-ratio")
    return figure


def _measured(curve: pd.DataFrame) -> bool:
    return "held_out_chosen_logratio" in curve and bool(curve["held_out_chosen_logratio"].notna().any())
