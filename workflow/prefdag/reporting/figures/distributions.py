"""Distributions: response lengths, and what the reward model says before and after its training."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefdag.evaluation.bootstrap import standard_error
from prefdag.reporting.figures.style import BLUE, GREY, INK, ORANGE, SKY, VERMILLION, new_figure, use_style


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


def reward_histograms(scores: Mapping[str, pd.DataFrame], models: Mapping[str, str]) -> Figure:
    """Plot the scores of each set of responses, a column a set and a row a model.

    Args:
        scores: set -> columns prompt_id and one per model; intervals of means are over prompts.
        models: column -> when the reward model gave these scores. Its row shares its bins, so sets can be compared.
    """
    with use_style():
        figure = new_figure(1.0 + 2.6 * len(scores), 0.2 + 2.1 * len(models))
        panels = figure.subplots(len(models), len(scores), squeeze=False, sharex="row", sharey="row")
        for row, (model, when) in zip(panels, models.items(), strict=True):
            everything = np.concatenate([frame[model] for frame in scores.values()])
            bins = np.linspace(everything.min(), everything.max() + 1e-9, 41)
            for axes, (name, frame), colour in zip(row, scores.items(), _two_colours(scores), strict=True):
                share = np.full(len(frame), 100 / len(frame))
                axes.hist(frame[model], bins, weights=share, color=colour, alpha=0.75, linewidth=0)
                axes.axvline(frame[model].mean(), color=INK, linewidth=1.2)
                reach = 1.96 * standard_error(frame[model], frame["prompt_id"])
                mean = frame[model].mean()
                spread = f"mean {mean:.2f} [{mean - reach:.2f}, {mean + reach:.2f}], std {frame[model].std(ddof=0):.2f}"
                axes.set_title(f"{name}, {when}\n{spread}", fontsize=8, weight="normal")
            row[0].set_ylabel("responses (%)")
        for axes in panels[-1]:
            axes.set_xlabel("reward-model score")
    return figure


def reward_boxes(scores: Mapping[str, pd.DataFrame], models: Mapping[str, str]) -> Figure:
    """Plot the same scores as boxes: quartiles, whiskers to 1.5 interquartile ranges, the mean as a diamond."""
    with use_style():
        figure = new_figure(1.6 + 2.4 * len(models), 0.9 + 0.4 * len(scores))
        panels = figure.subplots(1, len(models), squeeze=False)[0]
        for axes, (model, when) in zip(panels, models.items(), strict=True):
            _boxes(axes, {name: frame[model] for name, frame in scores.items()}, _two_colours(scores))
            axes.set_title(when)
            axes.set_xlabel("reward-model score")
        for axes in panels[1:]:
            axes.set_yticklabels([])
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
            colour = GREY if which.endswith("before training") else ORANGE
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
