"""Reliability of rewards: calibration, its accuracy by length, its correlation with length, its gains."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prefdag.evaluation.bootstrap import bootstrap_interval, summarise
from prefdag.evaluation.calibration import Calibration, spearman
from prefdag.reporting.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    new_figure,
    use_style,
)

PANELS_A_ROW = 4
BEFORE = "before training"
OTHERS = ((ORANGE, "s"), (BLUE, "o"), (VERMILLION, "D"), (GREEN, "^"), (PURPLE, "v"), (SKY, "P"))
LENGTH_BINS = 6


def styles(names: list[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) of each reward; grey is before training."""
    trained = [name for name in names if name != BEFORE]
    return {BEFORE: (GREY, "X")} | {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(trained)}


def calibration_figure(calibrations: Mapping[str, Calibration]) -> Figure | None:
    """Plot observed against predicted preference, a panel per reward; below, the pairs by confidence."""
    if not calibrations:
        return None
    columns = min(PANELS_A_ROW, len(calibrations))
    rows = -(-len(calibrations) // columns)
    with use_style():
        figure = new_figure(0.8 + 2.3 * columns, 3.3 * rows)
        panels = figure.subplots(
            2 * rows, columns, squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1] * rows
        )
        for place, (name, one) in enumerate(calibrations.items()):
            row, column = divmod(place, columns)
            above, below = panels[2 * row, column], panels[2 * row + 1, column]
            colour, marker = styles(list(calibrations))[name]
            bins = one.bins.dropna(subset="low")  # too few prompts
            x = 100 * bins["confidence"]
            error = 100 * np.array([bins["observed"] - bins["low"], bins["high"] - bins["observed"]])
            above.plot([50, 100], [50, 100], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            above.errorbar(
                x, 100 * bins["observed"], error, fmt=marker, color=colour, markersize=5, elinewidth=1.2, capsize=2
            )
            title = f"calibration error {100 * one.error:.1f}% [{100 * one.low:.1f}, {100 * one.high:.1f}]"
            above.set_title(f"{name}\n{title}\nby chance {100 * one.by_chance:.1f}%", fontsize=8, weight="normal")
            share = 100 * one.bins["pairs"] / one.bins["pairs"].sum()
            below.bar(52.5 + 5 * one.bins["bin"], share, 4.6, color=colour, alpha=0.75, linewidth=0)
            below.set_xlabel("predicted (%)")
        for spare in panels.T.ravel():
            spare.set_visible(bool(spare.get_xlabel() or spare.lines))
        for row in range(rows):
            panels[2 * row, 0].set_ylabel("observed (%)")
            panels[2 * row + 1, 0].set_ylabel("pairs (%)")
        panels[0, 0].set_xlim(48, 102)
    return figure


def length_gap_figure(tables: Mapping[str, pd.DataFrame]) -> Figure | None:
    """Plot accuracy by how many tokens longer the chosen response is, for every reward; below, the pairs."""
    tables = {name: table for name, table in tables.items() if len(table)}
    if not tables:
        return None
    first = next(iter(tables.values()))
    places = np.arange(len(first))
    with use_style():
        figure = new_figure(1.6 + 0.85 * len(first), 4.3)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        for place, (name, table) in enumerate(tables.items()):
            colour, marker = styles(list(tables))[name]
            shift = 0.5 * ((place + 0.5) / len(tables) - 0.5)
            accuracy = 100 * table["accuracy"]
            error = np.array([accuracy - 100 * table["low"], 100 * table["high"] - accuracy])
            style = {"fmt": marker, "color": colour, "markersize": 5, "elinewidth": 1.2, "capsize": 2, "label": name}
            above.errorbar(places + shift, accuracy, error, **style)
        above.axhline(50, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        above.set_ylim(-3, 103)  # a mark at 0 or 100 is seen whole
        above.set_ylabel("pairs ranked right (%)")
        below.bar(places, 100 * first["pairs"] / first["pairs"].sum(), 0.7, color="#bbbbbb", linewidth=0)
        below.set_ylabel("pairs (%)")
        below.set_xticks(places, first["label"], fontsize=7.5)
        below.set_xlabel("chosen minus rejected (counted tokens)")
        figure.legend(*above.get_legend_handles_labels(), loc="outside upper left", ncols=min(3, len(tables)))
    return figure


def reward_length_figure(scores: Mapping[str, pd.DataFrame], rewards: Mapping[str, str]) -> Figure:
    """Plot each reward against the response's length, a column per policy, with Spearman's correlation.

    scores: policy -> columns prompt_id, length and the rewards; rewards: column -> its label.
    """
    with use_style():
        figure = new_figure(1.0 + 2.3 * len(scores), 0.5 + 2.25 * len(rewards))
        panels = figure.subplots(len(rewards), len(scores), squeeze=False, sharex=True, sharey="row")
        for row, (column, label) in zip(panels, rewards.items(), strict=True):
            for axes, (policy, table) in zip(row, scores.items(), strict=True):
                # Thousands of points as vectors would weigh megabytes.
                axes.plot(table["length"], table[column], ".", color=SKY, markersize=2.5, alpha=0.5, rasterized=True)
                _binned_means(axes, table, column)
                prompts = table["prompt_id"]
                rho, low, high = spearman(table["length"], table[column], prompts, seed=f"{policy}/{column}")
                title = f"ρ = {_of(rho)} [{_of(low)}, {_of(high)}]" if np.isfinite(rho) else "all alike, no correlation"
                axes.set_title(f"{policy}\n{title}", fontsize=8, weight="normal")
            row[0].set_ylabel(label, fontsize=8)
        for axes in panels[-1]:
            axes.set_xlabel("length (counted tokens)")
    return figure


def _of(value: float) -> str:
    """Two digits, as print has them: a minus sign, and none before 0."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _binned_means(axes, table: pd.DataFrame, column: str) -> None:
    """Means with intervals over prompts in bins of length that hold about as many responses each."""
    cuts = np.unique(np.quantile(table["length"], np.linspace(0, 1, LENGTH_BINS + 1)))
    place = np.clip(np.searchsorted(cuts, table["length"], side="left") - 1, 0, max(0, len(cuts) - 2))
    for number, members in table.groupby(place):
        if members["prompt_id"].nunique() > 1:
            mean = members[column].mean()
            low, high = bootstrap_interval(
                members[column], members["prompt_id"], seed=f"{column}/{number}", bootstrap=1000
            )
            bar = [[mean - low], [high - mean]]
            style = {"fmt": "o", "color": INK, "markersize": 3.5, "elinewidth": 1.2, "capsize": 2, "zorder": 4}
            axes.errorbar(members["length"].mean(), mean, bar, **style)


def differences_figure(gains: Mapping[str, Mapping[str, pd.Series]]) -> Figure | None:
    """Plot the reward of a run minus SFT's at every prompt, sorted; a row per reward, a column per run.

    gains: reward's label -> run -> differences of prompt means [G], indexed by prompt.
    """
    runs = next(iter(gains.values()), {})
    if not runs:
        return None
    with use_style():
        figure = new_figure(1.0 + 2.4 * len(runs), 0.5 + 2.35 * len(gains))
        panels = figure.subplots(len(gains), len(runs), squeeze=False, sharey="row")
        for row, (label, by_run) in zip(panels, gains.items(), strict=True):
            for axes, (name, values) in zip(row, by_run.items(), strict=True):
                ordered = np.sort(values.to_numpy())
                place = 100 * (np.arange(len(ordered)) + 0.5) / len(ordered)
                for side, colour in ((ordered > 0, BLUE), (ordered < 0, VERMILLION)):
                    height = np.where(side, ordered, 0)
                    axes.fill_between(place, height, step="mid", color=colour, alpha=0.75, linewidth=0)
                axes.axhline(0, color=INK, linewidth=0.8)
                above = summarise(100.0 * (values > 0), values.index, seed=f"{label}/{name}", bootstrap=1000)
                mean = summarise(values, values.index, seed=f"{label}/{name}/mean", bootstrap=1000)
                share = f"above 0: {above.mean:.0f}% [{above.low:.0f}, {above.high:.0f}]"
                gain = f"mean {_of(mean.mean)} [{_of(mean.low)}, {_of(mean.high)}]"
                axes.set_title(f"{name}\n{share}\n{gain}", fontsize=8, weight="normal")
            row[0].set_ylabel(f"gain over SFT:\n{label}", fontsize=8)
        for axes in panels[-1]:
            axes.set_xlabel("prompts, sorted (%)")
    return figure
