"""The league of methods: reward at matched KL to the reference, displacement, length drift and cost.

A method is represented by all its settings: SFT at KL 0, then its settings in the order of their KL, joined by
straight lines. Shapes: S settings, G prompts, B bootstrap draws, M matched KLs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefdag.config.answer_sets import AnswerSet
from prefdag.reporting.tables import BEFORE_ALIGNMENT
from prefdag.seeds import generator


def league(
    runs: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    curves: Mapping[str, pd.DataFrame],
    matched: Sequence[float],
    bootstrap: int = 1000,
    seconds: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Compare methods at matched KL, a row per method, the best at the first matched KL first.

    Args:
        runs: columns run, method, group (`tables.runs_table`).
        tables: policy -> prompt_id, reward, kl, length of each generation, "sft" among them.
        curves: run -> curves.csv.
        matched: KLs in nats.
        bootstrap: number of resamples.
        seconds: run -> median seconds of a training step.

    Columns: method, settings, runs, max_kl; for each matched KL reward_at_<kl>, _low and _high (NaN
    where no setting went so far); at the setting of largest reward: best_reward, best_kl and
    length_drift (tokens against SFT), each with _low and _high, and chosen_logratio, rejected_logratio, chosen_fell
    (share of held-out comparisons); seconds_per_step. Intervals resample prompts, the same ones for every policy.
    """
    means = {name: _by_prompt(table) for name, table in tables.items()}
    num_prompts = len(means["sft"])
    draws = generator(0, "bootstrap", "league").multinomial(
        num_prompts, np.full(num_prompts, 1 / num_prompts), bootstrap
    )
    weights = np.vstack([np.full(num_prompts, 1.0), draws]) / num_prompts  # the first row is the plain mean: [1 + B, G]
    aligned = runs[~runs["run"].isin(BEFORE_ALIGNMENT)]
    rows = [
        {"method": method, **_row(members, means, curves, weights, matched, seconds or {})}
        for method, members in aligned.groupby("method", sort=False)
    ]
    table = pd.DataFrame(rows)
    return table.sort_values([_at(matched[0]), "best_reward"], ascending=False, kind="stable").reset_index(drop=True)


def _row(
    members: pd.DataFrame,
    means: Mapping[str, pd.DataFrame],
    curves: Mapping[str, pd.DataFrame],
    weights: np.ndarray,
    matched: Sequence[float],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    settings = {group: list(one["run"]) for group, one in members.groupby("group", sort=False)}
    reward, kl, length = (
        np.stack([weights @ np.mean([means[run][column] for run in runs], axis=0) for runs in settings.values()], 1)
        for column in ("reward", "kl", "length")
    )  # [1 + B, S], a setting's seeds averaged
    start = {column: weights @ means["sft"][column].to_numpy() for column in ("reward", "length")}
    at = {_at(target): _at_kl(target, start["reward"], kl, reward) for target in matched}
    best = int(np.argmax(reward[0]))
    drift = length[:, best] - start["length"]
    runs = list(settings.values())[best]
    steps = [seconds[run] for run in members["run"] if run in seconds]
    return {
        "settings": len(settings),
        "runs": len(members),
        "max_kl": kl[0].max(),
        **{name: value for target, values in at.items() for name, value in _interval(target, values).items()},
        **_interval("best_reward", reward[:, best]),
        **_interval("best_kl", kl[:, best]),
        **_displacement([curves[run] for run in runs if run in curves]),
        **_interval("length_drift", drift),
        "seconds_per_step": float(np.median(steps)) if steps else None,
    }


def _at(target: float) -> str:
    return f"reward_at_{target:g}"


def _at_kl(target: float, start: np.ndarray, kl: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Reward at `target` nats along SFT and the settings in the order of their KL: [1 + B]; NaN if out of reach.

    A draw in which no setting goes so far counts with the reward of the one that went furthest.
    """
    if kl[0].max() < target:
        return np.full(len(start), np.nan)
    rewards = np.empty(len(start))
    for draw in range(len(start)):
        order = np.argsort(kl[draw])
        along = np.concatenate([[0.0], kl[draw][order]]), np.concatenate([[start[draw]], reward[draw][order]])
        rewards[draw] = np.interp(target, *along)
    return rewards


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    """Return the plain value, `values[0]`, and the 95% percentile interval of the bootstrap draws, `values[1:]`."""
    low, high = np.quantile(values[1:], [0.025, 0.975]) if np.isfinite(values).all() else (np.nan, np.nan)
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def _by_prompt(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby("prompt_id")[["reward", "kl", "length"]].mean()


def _displacement(curves: Sequence[pd.DataFrame]) -> dict[str, float | None]:
    """Where held-out responses ended, in nats of summed log-ratio to SFT; the mean over a setting's seeds."""
    values: dict[str, float | None] = {}
    for name in ("chosen_logratio", "rejected_logratio", "chosen_fell"):
        column = f"held_out_{name}"
        ends = [curve[column].dropna().iloc[-1] for curve in curves if column in curve and curve[column].notna().any()]
        values[name] = float(np.mean(ends)) if ends else None
    return values


def seconds_per_step(journals: Path) -> dict[str, float]:
    """Median seconds between two optimizer steps of each preference run's last attempt, from its journal."""
    seconds = {}
    for path in sorted(journals.glob("preference-*.jsonl")):
        times, name = [], None
        for line in path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            name = event.get("name", name) if event["event"] == "start" else name
            if event["event"] == "metrics" and event["step"] is not None:
                times.append(event["time"])
        if name is not None and len(times) > 1:
            seconds[AnswerSet.parse(str(name)).policy] = float(np.median(np.diff(times)))
    return seconds
