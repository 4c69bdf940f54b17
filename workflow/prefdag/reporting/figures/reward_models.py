"""Figures of reward models that only some suites have, added to the catalogue of the report."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prefdag.reporting.figures.style import BLUE, GREY, INK, ORANGE, method_styles, new_figure, use_style
from prefdag.reporting.figures.suite import FIGURES
from prefdag.reporting.figures.texts import SIDES
from prefdag.reporting.load import SuiteResults
from prefdag.reporting.tables import title

__all__ = ["FIGURES"]
MOST_SUBSETS = 24  # of one set, the largest first
STAGES = {  # colour, place next to the others, label
    "before": (GREY, -0.22, "before training"),
    "after": (ORANGE, 0.0, "after training"),
    "reference": (BLUE, 0.22, "log-prob of the SFT policy"),
}


@FIGURES.add(
    "Accuracy of the reward model by subset and by length difference",
    "Share of comparisons ranked right by the reward model, and of those whose chosen response has the larger summed "
    "log-prob under the SFT policy, on each set of <i>evaluate_reward</i>: of all, of each section and "
    "subset that its rows name, and where the chosen response is longer, of like length (within a tenth) or shorter, "
    "with 95% intervals over prompts. A comparison may be in several subsets; numbers in brackets count comparisons.",
    section="reward-sets",
)
def reward_subsets(results: SuiteResults) -> Figure | None:
    return subsets_figure(results.reward_sets) if results.reward_sets else None


def subsets_figure(sets: Mapping[str, pd.DataFrame]) -> Figure:
    """Plot accuracy by subset, a panel for each set. sets: name -> subsets.csv of the stage `evaluate_reward`."""
    tables = {name: _largest(table) for name, table in sets.items()}
    sizes = [len(table.drop_duplicates(["kind", "subset"])) for table in tables.values()]
    with use_style():
        figure = new_figure(6.6, 0.7 + 0.27 * sum(sizes) + 0.4 * len(sizes))
        panels = figure.subplots(len(sizes), 1, squeeze=False, sharex=True, height_ratios=sizes).ravel()
        for axes, (name, table) in zip(panels, tables.items(), strict=True):
            _draw_set(axes, table)
            axes.set_title(name)
        panels[-1].set_xlabel("comparisons ranked right (%); dashed: chance")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def _largest(table: pd.DataFrame) -> pd.DataFrame:
    """Return a set's rows without its smaller subsets if it has very many."""
    subsets = table.loc[table["kind"] == "subset", "subset"].drop_duplicates()
    return table[~((table["kind"] == "subset") & table["subset"].isin(subsets[MOST_SUBSETS:]))]


def _draw_set(axes, table: pd.DataFrame) -> None:
    places = {key: place for place, key in enumerate(dict.fromkeys(zip(table["kind"], table["subset"], strict=True)))}
    pairs = {(row.kind, row.subset): row.pairs for row in table.itertuples()}
    for reward, (colour, shift, label) in STAGES.items():
        rows = table[table["reward"] == reward]
        if rows.empty:
            continue
        at = [places[kind, subset] + shift for kind, subset in zip(rows["kind"], rows["subset"], strict=True)]
        ends = (rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"])
        spread = [100 * end.fillna(0).clip(lower=0) for end in ends]  # rounding may leave an end at -1e-16
        style = {"color": colour, "markersize": 4, "elinewidth": 1.1, "capsize": 2, "label": label}
        axes.errorbar(100 * rows["accuracy"], at, xerr=spread, fmt="o", **style)
    kinds = [kind for kind, _ in places]
    for kind in ("overall", "subset", "length"):
        if kind in kinds and (kind != "subset" or "overall" in kinds):
            axes.axhline(kinds.index(kind) - 0.5, color="#cccccc", linewidth=0.8)
    axes.axvline(50, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(list(places.values()), [f"{subset} ({pairs[kind, subset]})" for kind, subset in places])
    axes.set_xlim(-2, 102)
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()


@FIGURES.add(
    "Gains of the reward model and of a held-out one over KL",
    "Gain over SFT in standard deviations of its scores: solid and filled by the reward model (the proxy), dashed and "
    "open by one that no policy was trained on (the gold); the settings and checkpoints of a method are joined in the "
    "order of their KL. Bars: 95% intervals over prompts. Where solid rises and dashed does not, the proxy is "
    "over-optimised.",
    section="reward-models",
)
def proxy_gold(results: SuiteResults) -> Figure | None:
    table = results.proxy_gold
    return None if table is None or table.empty else proxy_gold_figure(table)


def proxy_gold_figure(table: pd.DataFrame) -> Figure:
    """Plot both gains over KL. table: `proxy_gold.proxy_gold_table`."""
    styles = method_styles(table["method"])
    with use_style():
        figure = new_figure(7.2, 4.2)
        axes = figure.add_subplot()
        axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
        for method, rows in table.groupby("method", sort=False):
            colour, marker = styles[str(method)]
            rows = rows.sort_values("kl")
            for side, dashes, face in (("proxy", "-", colour), ("gold", (0, (3, 1.5)), "white")):
                ends = (rows[side] - rows[f"{side}_low"], rows[f"{side}_high"] - rows[side])
                spread = [end.clip(lower=0) for end in ends]
                axes.plot([0, *rows["kl"]], [0, *rows[side]], color=colour, linestyle=dashes, linewidth=1, alpha=0.6)
                bars = {"fmt": marker, "color": colour, "markerfacecolor": face, "markersize": 5, "elinewidth": 0.9}
                axes.errorbar(rows["kl"], rows[side], spread, **bars)
        axes.set_xlabel("sequence KL to the reference (nats)")
        axes.set_ylabel("gain over SFT (its standard deviations)")
        methods = [
            Line2D([], [], color=styles[name][0], marker=styles[name][1], label=title(name))
            for name in dict.fromkeys(table["method"])
        ]
        sides = [Line2D([], [], color=INK, marker="o", label="proxy")]
        sides += [Line2D([], [], color=INK, marker="o", mfc="white", linestyle=(0, (3, 1.5)), label="gold")]
        axes.legend(handles=[*methods, *sides], loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    return figure


@FIGURES.add(
    "Map of the models' hidden states of chosen and rejected responses",
    "t-SNE of the last layer's state at the last token of held-out responses, which a reward model's head reads: of "
    "the SFT policy, and of the reward model after its training. Only who is near whom has a meaning; axes and "
    "distances between groups have none.",
    section="texts",
)
def hidden_map(results: SuiteResults) -> Figure | None:
    path = results.inputs.hidden_map
    return hidden_map_figure(pd.read_csv(path.parent / "map.csv")) if path is not None else None


def hidden_map_figure(table: pd.DataFrame) -> Figure:
    """Plot a panel for each model. table: map.csv of the stage `hidden_map`."""
    models = list(dict.fromkeys(table["model"]))
    with use_style():
        figure = new_figure(0.4 + 3.8 * len(models), 4.0)
        for axes, model in zip(figure.subplots(1, len(models), squeeze=False).ravel(), models, strict=True):
            rows = table[table["model"] == model].sort_values(["row", "side"])  # neither side hides the other
            colours = [SIDES[side][0] for side in rows["side"]]
            axes.scatter(rows["x"], rows["y"], 11, colours, alpha=0.6, linewidths=0, zorder=2, rasterized=True)
            axes.set_title(model)
            axes.set_xticks([])
            axes.set_yticks([])
        marks = [
            Line2D([], [], color=colour, marker="o", linestyle="none", markersize=6, label=side)
            for side, (colour, _) in SIDES.items()
        ]
        figure.legend(handles=marks, loc="outside upper right", ncols=2)
    return figure
