"""The frontier: what each policy gains in reward for how far it moved away from the reference."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from prefdag.reporting.figures.style import GREY, INK, method_styles, new_figure, place_labels, use_style
from prefdag.reporting.tables import BEFORE_ALIGNMENT, title

BEST_OF_N: tuple[Any, ...] = ("-", (0, (3, 1.5)))  # by the headline reward, by the reward model
SPREAD = 5  # the largest KL is this many times the median: a linear axis would squeeze most policies together


def frontier(
    runs: pd.DataFrame,
    reward_label: str,
    checkpoints: pd.DataFrame | None = None,
    best_of_n: pd.DataFrame | None = None,
    narrow: bool = False,
    attainable: pd.DataFrame | None = None,
) -> Figure:
    """Plot reward against sequence KL to the reference, with 95% intervals and a colour and marker per method.

    A method's settings are joined in the order of their KL, through the mean of each setting's seeds, a cross. Settings
    that differ in a choice and not in a number are different losses, and not joined.

    Args:
        runs: columns run, method, form, group, label, reward, reward_low, reward_high, kl, kl_se.
        reward_label: label of the reward's axis.
        checkpoints: the same columns and step, joined to their run.
        best_of_n: best_of_n.csv.
        narrow: for a narrow screen, with the legend below.
        attainable: attainable.csv, of which the trusted part is plotted.

    Reference: Rafailov et al. 2023, figure 2 left, whose points are checkpoints.
    """
    checkpoints = runs.iloc[:0] if checkpoints is None else checkpoints
    pool = by_headline(best_of_n)
    with use_style():
        figure = new_figure(4.2, 5.6) if narrow else new_figure(7.2, 4.6)
        axes = figure.add_subplot()
        styles = method_styles(runs["method"])
        everything = pd.concat([runs[["kl", "kl_se"]], checkpoints[["kl", "kl_se"]], _extent(pool)])
        _scale(axes, everything["kl"])
        axes.set_xlabel(kl_label(axes))
        axes.set_ylabel(reward_label)
        sft = runs[runs["run"] == "sft"]
        if len(sft):
            axes.axhline(sft["reward"].iloc[0], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        for method, members in runs.groupby("method", sort=False):
            draw_checkpoints(axes, members, checkpoints, styles[str(method)][0], sft)
            _draw_method(axes, members, *styles[str(method)])
        draw_best_of_n(axes, pool)
        best = draw_attainable(axes, attainable)
        _legend(axes, list(dict.fromkeys(runs["method"])), styles, list(pool), narrow, best)
        _limits(axes, everything)
        _label(
            axes,
            runs,
            styles,
            np.concatenate([frame[["kl", "reward"]].to_numpy() for frame in (checkpoints, *pool.values())]),
        )
    return figure


def by_headline(best_of_n: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """Best-of-N measured by the headline reward, a table for each that selects: what the legend calls it -> table."""
    if best_of_n is None:
        return {}
    headline = best_of_n["selected_by"].iloc[0]
    shown = best_of_n[best_of_n["measured_by"] == headline]
    shown = shown.rename(columns={"mean": "reward", "low": "reward_low", "high": "reward_high"})
    return {
        "Best of N" if name == headline else "Best of N by\nreward model": rows
        for name, rows in shown.groupby("selected_by", sort=False)
    }


def _extent(pool: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Best-of-N's KLs as rows of `runs` hold theirs, so that the axis holds both."""
    parts = [rows[["kl"]].assign(kl_se=(rows["kl_high"] - rows["kl"]) / 1.96) for rows in pool.values()]
    return pd.concat(parts) if parts else pd.DataFrame({"kl": [], "kl_se": []}, dtype=float)


def draw_checkpoints(
    axes: Axes, members: pd.DataFrame, checkpoints: pd.DataFrame, colour: str, sft: pd.DataFrame
) -> None:
    """Small marks on a thin line from SFT, where every training starts, to its run and what is after it; intervals."""
    for run in members.to_dict("records"):
        rows = checkpoints[checkpoints["run"] == run["run"]].sort_values("step") if len(checkpoints) else checkpoints
        if rows.empty:
            continue
        later = rows["is_later"]
        parts = [sft, rows[~later], pd.DataFrame([run]), rows[later]]
        path = pd.concat([part[["kl", "reward"]] for part in parts])
        axes.plot(path["kl"], path["reward"], color=colour, linewidth=0.6, alpha=0.7, linestyle=(0, (1, 1)), zorder=2)
        spread = [rows["reward"] - rows["reward_low"], rows["reward_high"] - rows["reward"]]
        wide = [np.minimum(1.96 * rows["kl_se"], rows["kl"].clip(lower=0)), 1.96 * rows["kl_se"]]
        bars = {"ecolor": colour, "elinewidth": 0.5, "alpha": 0.35, "zorder": 2}
        axes.errorbar(rows["kl"], rows["reward"], spread, wide, fmt="none", **bars)
        axes.scatter(rows["kl"], rows["reward"], s=7, color=colour, linewidths=0, zorder=3)


def draw_best_of_n(axes: Axes, pool: dict[str, pd.DataFrame], named: bool = True) -> None:
    """A line through N = 1, 2, 4, ..., its band the 95% interval of the reward; named: the Ns at their points."""
    for (_, rows), dashes in zip(pool.items(), BEST_OF_N, strict=False):
        axes.fill_between(rows["kl"], rows["reward_low"], rows["reward_high"], color=INK, alpha=0.1, lw=0, zorder=1)
        axes.plot(rows["kl"], rows["reward"], color=INK, linewidth=1.2, linestyle=dashes, zorder=3)
        if named:
            wide = [rows["kl"] - rows["kl_low"], rows["kl_high"] - rows["kl"]]
            axes.errorbar(rows["kl"], rows["reward"], xerr=wide, fmt="none", ecolor=INK, elinewidth=0.7, zorder=3)
            axes.scatter(rows["kl"], rows["reward"], s=12, c="white", edgecolors=INK, linewidths=0.8, zorder=4)
    if named and pool:
        first = next(iter(pool.values()))
        style = {"fontsize": 6.5, "ha": "right", "color": INK, "zorder": 6, "textcoords": "offset points"}
        halo = [withStroke(linewidth=2, foreground="white")]
        for row in first[first["n"] > 1].to_dict("records"):
            text = f"N={row['n']}" if row["n"] == first["n"].max() else str(row["n"])
            axes.annotate(text, (row["kl"], row["reward"]), (-4, 2), path_effects=halo, **style)


def draw_attainable(axes: Axes, attainable: pd.DataFrame | None) -> list[Line2D]:
    """Draw the largest attainable reward as far as the pool shows it, its band the 95% interval; return its line."""
    shown = attainable[attainable["trusted"]] if attainable is not None else None
    if shown is None or len(shown) < 2:
        return []
    axes.fill_between(shown["kl"], shown["reward_low"], shown["reward_high"], color=INK, alpha=0.07, lw=0, zorder=1)
    style = {"color": INK, "linewidth": 1.0, "linestyle": (0, (1, 1.2))}
    return axes.plot(shown["kl"], shown["reward"], label="attainable\n(estimated)", zorder=3, **style)


def kl_label(axes: Axes) -> str:
    """Return the label of an axis of KL, which says so where it is not linear."""
    return "sequence KL to the reference (nats" + (", square-root axis)" if axes.get_xscale() == "function" else ")")


def _scale(axes: Axes, kl: pd.Series, room: float = 0.06) -> None:
    """A square-root axis where KL spreads widely (Gao et al. 2023 plot against its root), else a linear one.

    room: the least distance of two ticks, as a fraction of the axis.
    """
    positive = kl[kl > 0]
    if len(positive) and positive.max() > SPREAD * positive.median():
        axes.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x * x))
        step = 10.0 ** np.floor(np.log10(positive.max() / 10))
        candidates = step * np.array([0, 1, 2.5, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100])
        ticks = [0.0]
        for tick in candidates[candidates <= positive.max()]:
            if np.sqrt(tick) - np.sqrt(ticks[-1]) >= room * np.sqrt(positive.max()):
                ticks.append(float(tick))
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter("{x:g}")


def _limits(axes: Axes, runs: pd.DataFrame) -> None:
    """KL starts at its least possible value; a little room on the left shows the whole of SFT's marker."""
    right = (runs["kl"] + 1.96 * runs["kl_se"]).max()
    sqrt_axis = axes.get_xscale() == "function"
    axes.set_xlim(-right * (0.0012 if sqrt_axis else 0.03), right * (1.06 if sqrt_axis else 1.05) or 1.0)


def _draw_method(axes: Axes, members: pd.DataFrame, colour: str, marker: str) -> None:
    if members["method"].iloc[0] not in BEFORE_ALIGNMENT:
        for _, settings in members.groupby("form", sort=False):
            centres = settings.groupby("group", sort=False)[["kl", "reward"]].mean().sort_values("kl")
            axes.plot(centres["kl"], centres["reward"], color=colour, linewidth=1.3, alpha=0.55, zorder=2)
        several = members.groupby("group", sort=False).filter(lambda seeds: len(seeds) > 1)
        if len(several):
            means = several.groupby("group", sort=False)[["kl", "reward"]].mean()
            axes.scatter(means["kl"], means["reward"], s=60, c=INK, marker="+", linewidths=1.2, zorder=5)
    axes.errorbar(
        members["kl"],
        members["reward"],
        # Float32 sums of a policy that has hardly moved may come to -1e-8.
        xerr=[np.minimum(1.96 * members["kl_se"], members["kl"].clip(lower=0)), 1.96 * members["kl_se"]],
        yerr=[members["reward"] - members["reward_low"], members["reward_high"] - members["reward"]],
        fmt="none",
        ecolor=colour,
        elinewidth=0.9,
        alpha=0.6,
        zorder=3,
    )
    size = 90 if marker == "*" else 55 if marker in "XP" else 38
    axes.scatter(
        members["kl"], members["reward"], s=size, c=colour, marker=marker, edgecolors="white", lw=0.7, zorder=4
    )


def _legend(
    axes: Axes,
    methods: list[str],
    styles: dict[str, tuple[str, str]],
    pool: list[str],
    narrow: bool,
    further: list[Line2D],
) -> None:
    handles = []
    for method in methods:
        colour, marker = styles[method]
        joined = "none" if method in BEFORE_ALIGNMENT else "-"
        size = 9 if marker == "*" else 6
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                marker=marker,
                linestyle=joined,
                markersize=size,
                mec="white",
                mew=0.7,
                label=title(method),
            )
        )
    for name, dashes in zip(pool, BEST_OF_N, strict=False):
        shape = {"marker": "o", "markersize": 4, "mfc": "white"}
        handles.append(Line2D([], [], color=INK, linestyle=dashes, label=name, **shape))
    place: dict[str, Any] = {"bbox_to_anchor": (0, -0.14), "ncols": 2} if narrow else {"bbox_to_anchor": (1.01, 1.0)}
    axes.legend(handles=[*handles, *further], loc="upper left", borderaxespad=0, **place)


def _label(axes: Axes, runs: pd.DataFrame, styles: dict[str, tuple[str, str]], further: np.ndarray) -> None:
    """Label each group's mean with its setting, base and SFT with their names."""
    points, texts, colours = [], [], []
    for _, members in runs.groupby("group", sort=False):
        first = members.iloc[0]
        text = title(first["method"]) if first["run"] in BEFORE_ALIGNMENT else first["label"]
        if text:
            points.append([members["kl"].mean(), members["reward"].mean()])
            texts.append(text)
            colours.append(styles[first["method"]][0])
    if texts:
        place_labels(axes, np.array(points), texts, colours, np.concatenate([_obstacles(runs), further]))


def _obstacles(runs: pd.DataFrame) -> np.ndarray:
    """Points [M, 2] along everything visible: error bars, markers and the lines between settings."""
    steps = np.linspace(0, 1, 15)[:, None, None]
    centre = runs[["kl", "reward"]].to_numpy()
    wide, value = 1.96 * runs["kl_se"].to_numpy(), runs["reward"].to_numpy()
    kl = runs["kl"].to_numpy()
    bars = [
        np.stack([np.stack([kl - wide, value], 1), np.stack([kl + wide, value], 1)]),
        np.stack([np.stack([kl, runs["reward_low"]], 1), np.stack([kl, runs["reward_high"]], 1)]),
    ]
    level = runs["reward"][runs["run"] == "sft"].to_numpy()[:, None]
    across = np.linspace(0, kl.max(), 200)[None, :]
    points = [centre, centre, centre, np.stack(np.broadcast_arrays(across, level), -1).reshape(-1, 2)]
    for start, end in bars:
        points.append((start + steps * (end - start)).reshape(-1, 2))
    for _, members in runs[~runs["run"].isin(BEFORE_ALIGNMENT)].groupby(["method", "form"], sort=False):
        path = members.groupby("group")[["kl", "reward"]].mean().sort_values("kl").to_numpy()
        if len(path) > 1:
            points.append((path[:-1] + steps * (path[1:] - path[:-1])).reshape(-1, 2))
    return np.concatenate(points)
