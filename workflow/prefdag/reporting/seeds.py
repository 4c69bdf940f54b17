"""Compare runs, with intervals: paired gains over SFT, and means over the seeds of a setting.

Shapes: S seeds, G prompts.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefdag.config.sections.report import Expected
from prefdag.evaluation.over_seeds import mean_over_seeds, paired_difference
from prefdag.reporting.tables import title

SPREAD = ("reward", "kl", "win_rate", "length")
RANGE = {"kl": (0.0, np.inf), "length": (0.0, np.inf), "win_rate": (0.0, 1.0)}  # of a mean
BOOTSTRAP = 1000
GAIN = ["reward_gain", "reward_gain_low", "reward_gain_high"]


def means_by_prompt(table: pd.DataFrame, verdicts: Path | None) -> pd.DataFrame:
    """Average over each prompt's samples, [G] rows: the columns of scores.csv, and win_rate by the headline judge.

    verdicts: verdicts.csv, whose first judge is the headline; without one (SFT against itself) there is no win_rate.
    """
    means = table.groupby("prompt_id").mean(numeric_only=True).drop(columns="sample")
    if verdicts is None or not verdicts.is_file():
        return means
    judged = pd.read_csv(verdicts)
    if "judge" in judged:
        judged = judged[judged["judge"] == judged["judge"].iloc[0]]
    return means.assign(win_rate=judged.groupby("prompt_id")["verdict"].mean())


def gains(means: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, float]]:
    """Return each policy's mean reward minus SFT's, paired by prompt: run -> reward_gain, its low and high end."""
    sft = means["sft"]["reward"]
    gaps = {}
    for run, table in means.items():
        both = pd.concat([table["reward"], sft], axis=1, join="inner").to_numpy()
        if run != "sft" and len(both) > 1:
            gap = paired_difference(both[:, :1].T, both[:, 1:].T, seed=f"gain/{run}", bootstrap=BOOTSTRAP)
            gaps[run] = dict(zip(GAIN, (gap.mean, gap.low, gap.high), strict=True))
    return gaps


def average_seeds(means: Mapping[str, pd.DataFrame], runs: list[str], column: str) -> dict[str, float | None]:
    """Mean over seeds, its interval over seeds and prompts (`mean_over_seeds`), and the extremes.

    Prompts that a seed has no number for are left out. None where a run lacks the column.
    """
    if any(column not in means[run] for run in runs):
        return dict.fromkeys(("mean", "low", "high", "least", "most"), None)
    values = pd.concat([means[run][column] for run in runs], axis=1, join="inner").dropna().to_numpy().T
    within = RANGE.get(column, (-np.inf, np.inf))
    name = f"seeds/{runs[0]}/{column}"
    interval = mean_over_seeds(values[:, None, :], seed=name, bootstrap=BOOTSTRAP, within=within)
    each = values.mean(axis=1)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "least": each.min(), "most": each.max()}


def seeds_table(runs: pd.DataFrame, means: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return a row per setting with several seeds. runs: `tables.runs_table`; means: `means_by_prompt` by run."""
    rows = []
    for _, members in runs.groupby("group", sort=False):
        if len(members) > 1:
            first, names = members.iloc[0], list(members["run"])
            spread = {column: average_seeds(means, names, column) for column in SPREAD}
            name = " ".join(filter(None, [title(first["method"]), first["label"]]))
            rows.append({"name": name, "seeds": [int(seed) for seed in members["seed"]], **spread})
    return rows


def interval_of(
    runs: pd.DataFrame, means: Mapping[str, pd.DataFrame], row: str, column: str
) -> dict[str, float | None] | None:
    """Return mean, low and high of a measure of a run, or over the seeds of a row; None if it was not measured."""
    of_row = runs[runs["run"].str.fullmatch(re.escape(row) + r"(-seed\d+)?")]
    if of_row.empty or of_row[column].isna().any():
        return None
    if len(of_row) > 1:
        return average_seeds(means, list(of_row["run"]), column)
    run = of_row.iloc[0]
    low, high = ("win_low", "win_high") if column == "win_rate" else (f"{column}_low", f"{column}_high")
    ends = {key: None if np.isnan(run[name]) else float(run[name]) for key, name in (("low", low), ("high", high))}
    return {"mean": float(run[column]), **ends}


EVALUATION = {"accuracy": "after training", "accuracy_untrained": "before training"}


def published_rows(
    expected: Sequence[Expected],
    runs: pd.DataFrame,
    means: Mapping[str, pd.DataFrame],
    accuracies: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Each entry with `measured` (mean, low, high), None where this suite does not measure it or has no such run.

    runs: the report's table; means: run -> its numbers by prompt; accuracies: held-out evaluations of rewards by name.
    A run of several seeds is their mean, its interval over seeds and prompts.
    """
    return [{**entry.model_dump(), "measured": _measured(entry, runs, means, accuracies)} for entry in expected]


def _measured(
    entry: Expected,
    runs: pd.DataFrame,
    means: Mapping[str, pd.DataFrame],
    accuracies: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any] | None:
    if entry.measured in EVALUATION:
        name = EVALUATION[entry.measured]
        accuracy = accuracies.get(name) or (accuracies.get("as fetched") if name == "after training" else None)
        return (
            {"mean": accuracy["accuracy"], "low": accuracy["accuracy_low"], "high": accuracy["accuracy_high"]}
            if accuracy
            else None
        )
    return interval_of(runs, means, entry.run, entry.measured) if entry.measured else None
