"""Training of the reward model, and the implicit rewards of better and worse responses while a policy trains."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prefdag.reporting.figures.curves import draw_batches
from prefdag.reporting.figures.style import BLUE, GREY, INK, VERMILLION, new_figure, use_style

SIDES = {"chosen": ("better response", BLUE), "rejected": ("worse response", VERMILLION)}


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
