"""Distributions: response lengths, and what the reward model says before and after its training."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefdag.evaluation.bootstrap import standard_error
from prefdag.reporting.figures.style import BLUE, GREY, INK, ORANGE, SKY, VERMILLION, new_figure, use_style

MODELS = {"untrained": "before training", "trained": "after training"}


def lengths(tokens: Mapping[str, tuple[np.ndarray, np.ndarray]], data: int) -> Figure:
    """Counted tokens per response, a row a set on one axis; a line marks the median.

    tokens: name -> lengths [N] and prompts [N]; a mean's interval is 1.96 standard errors, over prompts. The first
    `data` sets are the data's, the others generated. The last bin holds all beyond the 99.5th percentile of all sets.
    """
    longest = max(2.0, float(np.quantile(np.concatenate([values for values, _ in tokens.values()]), 0.995)))
    width = max(1, int(np.ceil(longest / 50)))  # whole tokens: other widths would comb the histogram
    bins = np.arange(0, np.ceil(longest / width) + 2) * width - 0.5
    with use_style():
        figure = new_figure(7.2, 0.6 + 0.78 * len(tokens))
        panels = figure.subplots(len(tokens), 1, sharex=True, squeeze=False).ravel()
        for index, (axes, (name, (values, prompts))) in enumerate(zip(panels, tokens.items(), strict=True)):
            colour = SKY if index < data else BLUE
            clipped = np.minimum(values, bins[-1] - 0.5)
            share = np.full(len(values), 100 / len(values))
            axes.hist(clipped, bins, weights=share, color=colour, alpha=0.75, linewidth=0)
            axes.axvline(np.median(values), color=INK, linewidth=1.2)
            mean, reach = np.mean(values), 1.96 * standard_error(values, prompts)
            middle = f"median {np.median(values):g}, mean {mean:.1f} [{mean - reach:.1f}, {mean + reach:.1f}]"
            axes.set_title(f"{name}   {middle}", pad=3, weight="normal")
            axes.set_yticks([])
            axes.grid(axis="y", visible=False)
            axes.spines["left"].set_visible(False)
        panels[-1].set_xlabel("response length (counted tokens)")
        panels[-1].set_xlim(bins[0], bins[-1])
    return figure


def reward_histograms(scores: Mapping[str, pd.DataFrame]) -> Figure:
    """Scores of the untrained (above) and the trained reward model (below) on each policy's generations.

    scores: policy -> columns prompt_id, untrained, trained; intervals of means are over prompts. Each row shares its
    bins, so policies can be compared by eye.
    """
    with use_style():
        figure = new_figure(1.0 + 3.1 * len(scores), 4.4)
        panels = figure.subplots(2, len(scores), squeeze=False, sharex="row", sharey="row")
        for row, (model, when) in zip(panels, MODELS.items(), strict=True):
            everything = np.concatenate([frame[model] for frame in scores.values()])
            bins = np.linspace(everything.min(), everything.max() + 1e-9, 41)
            for axes, (policy, frame), colour in zip(row, scores.items(), _two_colours(scores), strict=True):
                share = np.full(len(frame), 100 / len(frame))
                axes.hist(frame[model], bins, weights=share, color=colour, alpha=0.75, linewidth=0)
                axes.axvline(frame[model].mean(), color=INK, linewidth=1.2)
                reach = 1.96 * standard_error(frame[model], frame["prompt_id"])
                mean = frame[model].mean()
                spread = f"mean {mean:.2f} [{mean - reach:.2f}, {mean + reach:.2f}], std {frame[model].std(ddof=0):.2f}"
                axes.set_title(f"{policy}, {when}\n{spread}", fontsize=8.5, weight="normal")
            row[0].set_ylabel("generations (%)")
            for axes in row:
                axes.set_xlabel("reward-model score")
    return figure


def reward_boxes(scores: Mapping[str, pd.DataFrame]) -> Figure:
    """The same scores as box plots: quartiles, whiskers to 1.5 interquartile ranges, the mean as a diamond."""
    with use_style():
        figure = new_figure(6.4, 0.9 + 0.55 * len(scores))
        panels = figure.subplots(1, 2)
        for axes, (model, when) in zip(panels, MODELS.items(), strict=True):
            _boxes(axes, {policy: frame[model] for policy, frame in scores.items()}, _two_colours(scores))
            axes.set_title(when)
            axes.set_xlabel("reward-model score")
        panels[1].set_yticklabels([])
    return figure


def _boxes(axes: Axes, values: Mapping[str, pd.Series], colours: list[str]) -> None:
    boxes = axes.boxplot(
        list(values.values()),
        orientation="horizontal",
        tick_labels=list(values),
        widths=0.55,
        patch_artist=True,
        showmeans=True,
        flierprops={"marker": ".", "markersize": 2.5, "markerfacecolor": GREY, "markeredgewidth": 0},
        meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": INK},
        medianprops={"color": INK, "linewidth": 1.4},
    )
    for box, colour in zip(boxes["boxes"], colours, strict=True):
        box.set(facecolor=colour, alpha=0.75, linewidth=0)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def _two_colours(scores: Mapping[str, pd.DataFrame]) -> list[str]:
    return [(BLUE, VERMILLION)[index % 2] for index in range(len(scores))]


def reward_accuracy(evaluation: Mapping[str, Mapping[str, float]]) -> Figure:
    """Share of held-out comparisons ranked right by each reward, with 95% intervals over prompts.

    evaluation: what the bar is called -> accuracy, accuracy_low and accuracy_high; grey is before training.
    """
    with use_style():
        figure = new_figure(4.6, 0.9 + 0.3 * len(evaluation))
        axes = figure.add_subplot()
        for place, (which, entry) in enumerate(evaluation.items()):
            accuracy, low, high = (entry[key] for key in ("accuracy", "accuracy_low", "accuracy_high"))
            colour = GREY if which == "before training" else ORANGE
            axes.barh(place, 100 * accuracy, color=colour, height=0.6, alpha=0.85)
            error = [[100 * (accuracy - low)], [100 * (high - accuracy)]]
            axes.errorbar(100 * accuracy, place, xerr=error, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
            axes.text(100 * high + 1.5, place, f"{100 * accuracy:.1f}%", va="center", fontsize=8)
        axes.axvline(50, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(evaluation)), list(evaluation))
        axes.set_xlim(0, 108)
        axes.set_xticks(range(0, 101, 25))
        axes.set_xlabel("held-out comparisons ranked right (%); dashed: chance")
        axes.grid(axis="y", visible=False)
        axes.invert_yaxis()
    return figure
