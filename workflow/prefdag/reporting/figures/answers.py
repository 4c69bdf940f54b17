"""Win rates of further sets of answers: over sampling temperatures, and over the checkpoints of a training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefdag.reporting.figures.curves import setting_colours, settings_legend
from prefdag.reporting.figures.style import BEFORE_STYLES, BLUE, GREY, VERMILLION, method_styles, new_figure, use_style
from prefdag.reporting.tables import BEFORE_ALIGNMENT, checkpoints, ood_win_rates, temperature_variants, title

TOGETHER = 7  # policies that one panel can hold
ACROSS = 3  # panels in a row


def by_temperature(answers: pd.DataFrame, label: str) -> Figure | None:
    """Plot the win rate of each policy over the temperatures that it was sampled at.

    answers: `tables.answers_table`; label: of the win rate. None unless a policy has two temperatures.

    Reference: Rafailov et al. 2023, figure 2 right.
    """
    table = temperature_variants(answers)
    table = table[table["win_rate"].notna() & table["temperature"].notna()]
    # SFT against itself is a half at any temperature.
    table = table.groupby("run", sort=False).filter(
        lambda rows: rows["temperature"].nunique() > 1 and rows["win_low"].notna().any()
    )
    return _curves(table, "temperature", "sampling temperature", label) if len(table) else None


def over_training(answers: pd.DataFrame, label: str) -> Figure | None:
    """Plot the win rate of each run at its checkpoints and its end, from SFT on (Rafailov et al. 2023, figure 3 right).

    None for a suite without checkpoints.
    """
    saved = checkpoints(answers)
    if saved.empty:
        return None
    ends = answers[(answers["variant"] == "") & answers["run"].isin(saved["run"])]
    start = answers[answers["answers"] == "sft"]
    whole = [
        pd.concat([start.assign(**_identity(end)), saved[saved["run"] == end["run"]], end.to_frame().T]).sort_values(
            "step"
        )
        for _, end in ends.iterrows()
    ]
    table = pd.concat(whole)
    return _curves(table.dropna(subset=["win_rate", "step"]), "step", "optimizer step", label)


def on_other_prompts(answers: pd.DataFrame, label: str) -> Figure | None:
    """Plot win rates on the suite's test prompts and on another input distribution (Rafailov et al. 2023, table 1).

    None for a suite without such answers.
    """
    table = ood_win_rates(answers)
    if table.empty:
        return None
    with use_style():
        figure = new_figure(7.2, 1.3 + 0.34 * len(table))
        axes = figure.subplots()
        axes.axvline(50, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        place = np.arange(len(table))[::-1]
        sides = (
            ("test", "test prompts", BLUE, "o", 0.12),
            ("ood", "other prompts", VERMILLION, "^", -0.12),
        )
        for side, name, colour, marker, shift in sides:
            mean, low, high = (100 * table[f"{side}_{end}"].to_numpy(float) for end in ("mean", "low", "high"))
            shape: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linestyle": "none"}
            axes.errorbar(mean, place + shift, xerr=[mean - low, high - mean], label=name, capsize=2, **shape)
        axes.set_yticks(place, [setting(row) for row in table.to_dict("records")])
        axes.set_ylim(-0.6, len(table) - 0.4)
        axes.xaxis.set_major_formatter("{x:g}%")
        axes.set_xlabel(label)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    return figure


def setting(row: Mapping[str, Any]) -> str:
    """Name a policy and its sampling settings: DPO β=0.5, T = 0.25."""
    top = f", top-p {row['top_p']:g}" if row["top_p"] != 1 else ""
    return f"{row['display']}, T = {row['temperature']:g}{top}"


def _identity(row: pd.Series) -> dict[str, object]:
    return {key: row[key] for key in ("run", "method", "group", "label", "display")}


def _curves(table: pd.DataFrame, x: str, x_label: str, label: str) -> Figure:
    """Plot a line per policy with 95% intervals, in one panel or, if they are many, a panel per method."""
    runs = list(dict.fromkeys(table["run"]))
    methods = [method for method in dict.fromkeys(table["method"]) if method not in BEFORE_ALIGNMENT]
    split = len(runs) > TOGETHER and len(methods) > 1
    groups: Sequence[str | None] = methods if split else [None]
    rows = -(-len(groups) // ACROSS)
    columns = min(ACROSS, len(groups))
    with use_style():
        figure = new_figure(7.2, 3.8) if not split else new_figure(1.2 + 2.5 * columns, 0.5 + 2.3 * rows)
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, method in zip(panels, groups, strict=False):
            if method is None:
                _draw(axes, table, x, method_styles(runs))
                axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
                continue
            members_of_method = table[table["method"] == method].drop_duplicates("run")
            colours = dict(zip(members_of_method["run"], setting_colours(members_of_method), strict=True))
            members = table[table["run"].isin(colours) | table["method"].isin(BEFORE_ALIGNMENT)]
            _draw(axes, members, x, BEFORE_STYLES | {run: (colour, "o") for run, colour in colours.items()})
            settings_legend(axes, title(method), members_of_method)
        for axes in panels[len(groups) :]:
            axes.set_visible(False)
        for axes in panels[: len(groups)][-columns:]:
            axes.xaxis.set_tick_params(labelbottom=True)  # also above an empty place
        figure.supxlabel(x_label, fontsize=9)
        figure.supylabel(label, fontsize=9)
    return figure


def _draw(axes: Axes, members: pd.DataFrame, x: str, styles: Mapping[str, tuple]) -> None:
    axes.axhline(50, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    runs = list(dict.fromkeys(members["run"]))
    span = float(members[x].max() - members[x].min())
    shifts = (np.arange(len(runs)) - (len(runs) - 1) / 2) * 0.008 * span  # intervals at one place stay apart
    for run, shift in zip(runs, shifts, strict=True):
        rows = members[members["run"] == run].sort_values(x)
        place = rows[x].to_numpy(dtype=float) + shift
        rate, low, high = (100 * rows[name].to_numpy(dtype=float) for name in ("win_rate", "win_low", "win_high"))
        colour, marker = styles[run]
        size = 8 if marker == "*" else 5
        shape: dict[str, Any] = {"color": colour, "marker": marker, "markersize": size, "mec": "white", "mew": 0.5}
        bars: dict[str, Any] = {"elinewidth": 0.9, "capsize": 2, "linewidth": 1.3}
        axes.errorbar(place, rate, [rate - low, high - rate], label=rows["display"].iloc[0], zorder=3, **shape, **bars)
    axes.yaxis.set_major_formatter("{x:g}%")
