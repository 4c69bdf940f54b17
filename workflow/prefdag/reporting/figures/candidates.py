"""The candidates of a search and the chosen ones, a panel for each row."""

from matplotlib.figure import Figure

from prefdag.reporting.figures.style import BLUE, GREY, new_figure, use_style
from prefdag.reporting.load import SuiteResults

PANELS_A_ROW = 3
LABELS = {
    "reward_at_kl": "reward at KL",
    "win_rate": "win rate",
    "held_out_accuracy": "held-out accuracy",
}


def candidates(results: SuiteResults) -> Figure | None:
    """Draw the value of every candidate with its 95% interval, the chosen one filled."""
    if (table := results.candidates) is None:
        return None
    rows = list(dict.fromkeys(table["row"]))
    columns, most = min(PANELS_A_ROW, len(rows)), int(table["row"].value_counts().max())
    lines = -(-len(rows) // columns)
    with use_style():
        figure = new_figure(0.4 + 3.2 * columns, 0.5 + lines * (0.5 + 0.22 * most))
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
        for axes in panels[len(rows) :]:
            axes.set_visible(False)
        for axes, row in zip(panels, rows, strict=False):
            members = table[table["row"] == row].reset_index(drop=True)
            bars = [members["value"] - members["low"], members["high"] - members["value"]]
            spread = None if members["low"].isna().any() else bars
            height = members.index.to_numpy()
            axes.errorbar(members["value"], height, xerr=spread, fmt="none", ecolor=GREY, elinewidth=0.9)
            faces = [BLUE if chosen else "white" for chosen in members["chosen"]]
            axes.scatter(members["value"], height, s=28, c=faces, edgecolors=BLUE, linewidths=1, zorder=3)
            axes.set_yticks(height, members["setting"], fontsize=6.5)
            axes.set_ylim(len(members) - 0.5, -0.5)
            axes.set_title(row, fontsize=8)
            axes.xaxis.set_tick_params(labelbottom=True)
        figure.supxlabel(f"{LABELS[table['criterion'].iloc[0]]}, validation prompts", fontsize=9)
    return figure
