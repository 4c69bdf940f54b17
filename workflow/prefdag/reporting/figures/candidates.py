"""The candidates of a search and the chosen ones, a panel for each row."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefdag.reporting.figures.style import BLUE, COLOURS, GREY, new_figure, use_style
from prefdag.reporting.load import SuiteResults

PANELS_A_ROW = 3
LABELS = {
    "reward_at_kl": "reward within the stated KL",
    "win_rate": "win rate",
    "held_out_accuracy": "held-out accuracy",
}


def candidates(results: SuiteResults) -> Figure | None:
    """Draw the value of every candidate with its 95% interval, the chosen one filled.

    With early stopping a line goes through the lengths of each training.
    """
    if (table := results.candidates) is None:
        return None
    rows = list(dict.fromkeys(table["row"]))
    has_lengths = "steps" in table
    columns, most = min(PANELS_A_ROW, len(rows)), int(table["row"].value_counts().max())
    lines = -(-len(rows) // columns)
    label = f"{LABELS[table['criterion'].iloc[0]]}, validation prompts"
    with use_style():
        figure = new_figure(0.4 + 3.2 * columns, 0.7 + lines * (2.0 if has_lengths else 0.5 + 0.22 * most))
        panels = figure.subplots(lines, columns, squeeze=False, sharex=not has_lengths, sharey=has_lengths).ravel()
        for axes in panels[len(rows) :]:
            axes.set_visible(False)
        for axes, row in zip(panels, rows, strict=False):
            members = table[table["row"] == row].reset_index(drop=True)
            (_over_lengths if has_lengths else _side_by_side)(axes, members)
            if members["sft_reward"].notna().all() and members["criterion"].iloc[0] == "reward_at_kl":
                draw = axes.axhline if has_lengths else axes.axvline
                draw(members["sft_reward"].iloc[0], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            axes.set_title(row, fontsize=8)
            axes.xaxis.set_tick_params(labelbottom=True)
        if has_lengths:
            figure.supxlabel("optimizer steps; on-policy methods: rounds", fontsize=9)
            figure.supylabel(label, fontsize=9)
            _legend(figure, panels[: len(rows)])
        else:
            figure.supxlabel(label, fontsize=9)
    return figure


def _side_by_side(axes: Axes, members: pd.DataFrame) -> None:
    """A line of the panel for each candidate of a row."""
    height = members.index.to_numpy()
    axes.errorbar(members["value"], height, xerr=_spread(members), fmt="none", ecolor=GREY, elinewidth=0.9)
    axes.scatter(members["value"], height, s=28, c=_faces(members, BLUE), edgecolors=BLUE, linewidths=1, zorder=3)
    axes.set_yticks(height, members["setting"], fontsize=6.5)
    axes.set_ylim(len(members) - 0.5, -0.5)


def _over_lengths(axes: Axes, members: pd.DataFrame) -> None:
    """A curve for each training of a row over the steps that it may stop at."""
    width = (members["steps"].max() - members["steps"].min()) / 60  # so that intervals of one length do not overlap
    trainings = list(dict.fromkeys(members["training"]))
    for place, training in enumerate(trainings):
        curve = members[members["training"] == training]
        colour, steps = COLOURS[place % len(COLOURS)], curve["steps"] + width * (place - (len(trainings) - 1) / 2)
        lines = {"color": colour, "elinewidth": 0.8, "linewidth": 0.9, "label": training}
        axes.errorbar(steps, curve["value"], yerr=_spread(curve), **lines)
        faces = _faces(curve, colour)
        axes.scatter(steps, curve["value"], s=22, c=faces, edgecolors=colour, linewidths=1, zorder=3)
    axes.set_xticks(sorted(set(members["steps"])))


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Name the trainings: once above all panels if every row has the same, else in each."""
    named = [axes.get_legend_handles_labels() for axes in panels]
    if all(labels == named[0][1] for _, labels in named):
        figure.legend(*named[0], loc="outside upper center", ncols=len(named[0][1]), fontsize=7, handlelength=0.8)
    else:
        for axes in panels:
            axes.legend(fontsize=5.5, handlelength=0.8)


def _spread(members: pd.DataFrame) -> list[pd.Series] | None:
    """Return the lengths of the intervals below and above the values; None where the criterion has none."""
    below, above = members["value"] - members["low"], members["high"] - members["value"]
    return None if members["low"].isna().any() else [below, above]


def _faces(members: pd.DataFrame, colour: str) -> list[str]:
    return [colour if chosen else "white" for chosen in members["chosen"]]
