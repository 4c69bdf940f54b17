"""The league of methods: reward at matched KL to the reference, displacement, length drift and cost.

A method is represented by all its settings. Its reward at a matched KL is that of the setting that goes so far and
least far beyond, read along the path of its training (`reporting.matched_kl`). Without checkpoints this is the line
through SFT and the settings in the order of their KL. Another choice of an option that is no number, such as summed or
averaged log-probs, is another method.
Shapes: S settings, G prompts, B bootstrap draws, M matched KLs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefdag.config.answer_sets import AnswerSet
from prefdag.evaluation.bootstrap import summarise, wilson
from prefdag.evaluation.over_seeds import Variance, half_width, mean_over_seeds
from prefdag.reporting.matched_kl import by_prompt, draws_of, path_of, reward_within, seed_variances
from prefdag.reporting.tables import BEFORE_ALIGNMENT
from prefdag.seeds import generator

DISPLACEMENT = ("chosen_logratio", "rejected_logratio", "chosen_fell")


def league(
    runs: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    curves: Mapping[str, pd.DataFrame],
    matched: Sequence[float],
    bootstrap: int = 1000,
    seconds: Mapping[str, float] | None = None,
    displaced: Mapping[str, pd.DataFrame] | None = None,
    checkpoints: Mapping[str, Mapping[int, pd.DataFrame]] | None = None,
) -> pd.DataFrame:
    """Compare methods at matched KL, a row per method, the largest reward at the first matched KL first.

    Args:
        runs: columns run, method, form, group (`tables.runs_table`).
        tables: policy -> prompt_id, reward, kl, length of each generation, "sft" among them.
        curves: run -> curves.csv.
        matched: KLs in nats.
        bootstrap: number of resamples.
        seconds: run -> median seconds of a training step.
        displaced: run -> prompt, chosen_logratio, rejected_logratio of held-out comparisons at the end of training.
        checkpoints: run -> step -> table as in `tables`, of the policies along its training.

    Columns: method, settings, runs, max_kl (of checkpoints too); for each matched KL reward_at_<kl>, _low and _high, of
    a mixture of two policies within that KL (NaN where no path went so far); of the final policies of the setting of
    largest reward: best_reward, best_kl and length_drift (tokens against SFT), each with _low and _high, and
    chosen_logratio, rejected_logratio, chosen_fell (share of held-out comparisons); seconds_per_step; form;
    fewest_seeds and most_seeds of a setting, best_seeds of that of largest reward; _low and _high of the displacement.
    Intervals resample prompts, the same ones for every policy; where a number has settings of several seeds, they are
    those of `evaluation.over_seeds`.
    """
    prompts = by_prompt(tables["sft"]).index
    aligned = runs[~runs["run"].isin(BEFORE_ALIGNMENT)]
    means = {name: by_prompt(tables[name], prompts, name) for name in ("sft", *aligned["run"])}
    saved = {
        run: {step: by_prompt(table, prompts, f"{run} at step {step}") for step, table in steps.items()}
        for run, steps in (checkpoints or {}).items()
    }
    num_prompts = len(means["sft"])
    draws = generator(0, "bootstrap", "league").multinomial(
        num_prompts, np.full(num_prompts, 1 / num_prompts), bootstrap
    )
    weights = np.vstack([np.full(num_prompts, 1.0), draws]) / num_prompts  # the first row is the plain mean: [1 + B, G]
    rows = [
        {"method": method, **_row(members, means, saved, curves, weights, matched, seconds or {}, displaced or {})}
        for (method, _), members in aligned.groupby(["method", "form"], sort=False)
    ]
    table = pd.DataFrame(rows)
    return table.sort_values([_at(matched[0]), "best_reward"], ascending=False, kind="stable").reset_index(drop=True)


def _row(
    members: pd.DataFrame,
    means: Mapping[str, pd.DataFrame],
    saved: Mapping[str, Mapping[int, pd.DataFrame]],
    curves: Mapping[str, pd.DataFrame],
    weights: np.ndarray,
    matched: Sequence[float],
    seconds: Mapping[str, float],
    displaced: Mapping[str, pd.DataFrame],
) -> dict[str, Any]:
    settings = {group: list(one["run"]) for group, one in members.groupby("group", sort=False)}
    by_seed = {
        column: [np.stack([means[run][column] for run in runs]) for runs in settings.values()]
        for column in ("reward", "kl", "length")
    }  # of each setting, [seeds, G]
    reward, kl, length = (
        np.stack([weights @ values.mean(axis=0) for values in by_seed[column]], 1) for column in by_seed
    )  # [1 + B, S], a setting's seeds averaged
    paths = [path_of(runs, means, saved) for runs in settings.values()]
    draws = [draws_of(path, weights) for path in paths]
    start = {column: weights @ means["sft"][column].to_numpy() for column in ("reward", "length")}
    best = int(np.argmax(reward[0]))
    drift = by_seed["length"][best] - means["sft"]["length"].to_numpy()
    runs = list(settings.values())[best]
    steps = [seconds[run] for run in members["run"] if run in seconds]
    moved = _displacement([curves[run] for run in runs if run in curves])
    at: dict[str, float] = {}
    for target in matched:
        values = reward_within(target, start["reward"], draws)
        seeds = seed_variances(target, start["reward"][0], paths)
        at |= _centred(_at(target), values, seeds, weights.shape[1])
    return {
        "settings": len(settings),
        "runs": len(members),
        "max_kl": max(reached[0].max() for reached, _ in draws),
        **at,
        **_of_setting("best_reward", reward[:, best], by_seed["reward"][best]),
        **_of_setting("best_kl", kl[:, best], by_seed["kl"][best]),
        **moved,
        **_of_setting("length_drift", length[:, best] - start["length"], drift),
        "seconds_per_step": float(np.median(steps)) if steps else None,
        "form": members["form"].iloc[0],
        "fewest_seeds": min(map(len, settings.values())),
        "most_seeds": max(map(len, settings.values())),
        "best_seeds": len(runs),
        **_ends(moved, [displaced[run] for run in runs if run in displaced]),
    }


def _of_setting(name: str, draws: np.ndarray, by_seed: np.ndarray) -> dict[str, float]:
    """Return a setting's mean with its interval: over prompts of one seed, [1 + B], or over seeds, [seeds, G]."""
    if len(by_seed) == 1:
        return _interval(name, draws)
    values = mean_over_seeds(by_seed[:, None], seed=name)
    return {name: float(draws[0]), f"{name}_low": values.low, f"{name}_high": values.high}


def _centred(name: str, draws: np.ndarray, seeds: list[Variance], num_prompts: int) -> dict[str, float]:
    """Return the plain value with its interval over prompts, [1 + B], and over seeds where these move it."""
    if not seeds or not np.isfinite(draws).all():
        return _interval(name, draws)
    half = half_width(seeds, Variance(float(draws[1:].var(ddof=1)), num_prompts - 1))
    return {name: float(draws[0]), f"{name}_low": float(draws[0] - half), f"{name}_high": float(draws[0] + half)}


def _ends(moved: Mapping[str, float | None], runs: Sequence[pd.DataFrame]) -> dict[str, float | None]:
    """Return the ends of the displacement's intervals. runs: of each seed, a row per held-out comparison."""
    ends: dict[str, float | None] = {}
    tables = [table.assign(chosen_fell=(table["chosen_logratio"] < 0).astype(float)) for table in runs]
    for name in DISPLACEMENT:
        ends |= {f"{name}_low": None, f"{name}_high": None}
        mean = moved[name]
        if mean is None or not tables or tables[0]["prompt"].nunique() < 2:
            continue
        interval = summarise(tables[0][name], tables[0]["prompt"], seed=name)
        if len(tables) > 1:
            by_prompt = np.stack([table.groupby("prompt")[name].mean() for table in tables])
            interval = mean_over_seeds(by_prompt[:, None], seed=name)
        around = np.array([interval.low, interval.high]) - interval.mean + mean
        if name == "chosen_fell":  # where every response fell, a bootstrap has no width
            low, high = wilson(np.array(mean), tables[0]["prompt"].nunique())
            around = np.clip([min(around[0], low), max(around[1], high)], 0.0, 1.0)
        ends[f"{name}_low"], ends[f"{name}_high"] = around.tolist()
    return ends


def _at(target: float) -> str:
    return f"reward_at_{target:g}"


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    """Return the plain value, `values[0]`, and the 95% percentile interval of the bootstrap draws, `values[1:]`."""
    low, high = np.quantile(values[1:], [0.025, 0.975]) if np.isfinite(values).all() else (np.nan, np.nan)
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def _displacement(curves: Sequence[pd.DataFrame]) -> dict[str, float | None]:
    """Where held-out responses ended, in nats of summed log-ratio to SFT; the mean over a setting's seeds."""
    values: dict[str, float | None] = {}
    for name in DISPLACEMENT:
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
