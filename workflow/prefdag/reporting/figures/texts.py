"""Chosen and rejected responses as texts: a map of them, their words, and the words that distinguish them."""

from collections import Counter
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from wordcloud import STOPWORDS, WordCloud

from prefdag.evaluation.bootstrap import bootstrap_interval
from prefdag.evaluation.text_stats import distinctive_words, text_map, words
from prefdag.reporting.figures.style import BLUE, INK, VERMILLION, new_figure, use_style

SIDES = {"chosen": (BLUE, "o"), "rejected": (VERMILLION, "^")}
FONT = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"  # of Matplotlib, so the same on every machine


def text_map_figure(chosen: Sequence[str], rejected: Sequence[str], prompts: np.ndarray) -> Figure | None:
    """Chosen and rejected texts on the first two principal components of their TF-IDF vectors, with both means.

    chosen, rejected, prompts: [N]. None where the texts span no plane.
    """
    projected = text_map([*chosen, *rejected])
    if projected is None or len(np.unique(prompts)) < 2:
        return None
    points, share = projected
    halves = dict(zip(SIDES, (points[: len(chosen)], points[len(chosen) :]), strict=True))
    with use_style():
        figure = new_figure(5.6, 4.4)
        axes = figure.add_subplot()
        # One chosen, one rejected, and so on: neither hides the other.
        colours = [colour for _ in chosen for colour, _ in SIDES.values()]
        together = np.stack(list(halves.values()), axis=1).reshape(-1, 2)
        axes.scatter(together[:, 0], together[:, 1], 8, colours, alpha=0.45, linewidths=0, zorder=2, rasterized=True)
        for name, (colour, marker) in SIDES.items():
            mean = halves[name].mean(0)
            bounds = [
                bootstrap_interval(halves[name][:, axis], prompts, seed=f"map/{name}/{axis}", bootstrap=1000)
                for axis in (0, 1)
            ]
            bars = [[[mean[axis] - bounds[axis][0]], [bounds[axis][1] - mean[axis]]] for axis in (0, 1)]
            style = {"color": colour, "markeredgecolor": "white", "markersize": 8, "elinewidth": 1.5, "ecolor": INK}
            axes.errorbar(mean[0], mean[1], bars[1], bars[0], fmt=marker, zorder=4, **style)
        for axis, setter in enumerate((axes.set_xlabel, axes.set_ylabel)):
            setter(f"principal component {axis + 1} ({100 * share[axis]:.1f}% of the variance)")
        marks = [
            Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=7, label=name)
            for name, (colour, marker) in SIDES.items()
        ]
        figure.legend(handles=marks, loc="outside upper left", ncols=2)
    return figure


def words_figure(chosen: Sequence[str], rejected: Sequence[str], prompts: np.ndarray) -> Figure | None:
    """Word clouds of chosen and of rejected responses, and the words that distinguish them.

    None where a side has no word.
    """
    telling = distinctive_words(chosen, rejected, prompts)
    clouds = [_cloud(texts, colour) for texts, (colour, _) in zip((chosen, rejected), SIDES.values(), strict=True)]
    if not len(telling) or any(cloud is None for cloud in clouds):
        return None
    with use_style():
        figure = new_figure(8.6, max(4.2, 0.8 + 0.185 * len(telling)))
        grid = figure.add_gridspec(2, 2, width_ratios=[1.15, 1])
        for row, (name, cloud) in enumerate(zip(SIDES, clouds, strict=True)):
            axes = figure.add_subplot(grid[row, 0])
            axes.imshow(cloud, interpolation="bilinear", aspect="equal")
            axes.set_title(name)
            axes.set_axis_off()
        _bars(figure.add_subplot(grid[:, 1]), telling)
    return figure


def _cloud(texts: Sequence[str], colour: str) -> np.ndarray | None:
    """A cloud whose words' size follows their frequency; English function words are left out."""
    counts = Counter(word for text in texts for word in words(text) if word not in STOPWORDS)
    if not counts:
        return None
    cloud = WordCloud(
        FONT,
        width=900,
        height=500,
        background_color="white",
        max_words=60,
        margin=5,
        random_state=0,
        color_func=lambda *_, **__: colour,
    )
    # Sorted: among equally frequent words, the text's order must not decide.
    return cloud.generate_from_frequencies(dict(sorted(counts.items()))).to_array()


def _bars(axes, telling: pd.DataFrame) -> None:
    places = np.arange(len(telling))
    colours = [SIDES["chosen" if delta > 0 else "rejected"][0] for delta in telling["delta"]]
    axes.barh(places, telling["delta"], 0.7, color=colours, alpha=0.8)
    error = np.clip([telling["delta"] - telling["low"], telling["high"] - telling["delta"]], 0, None)
    axes.errorbar(telling["delta"], places, xerr=error, fmt="none", ecolor=INK, elinewidth=1, capsize=1.5)
    axes.set_yticks(places, telling["word"], fontsize=7.5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("rejected  ←  log-odds ratio  →  chosen")
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
