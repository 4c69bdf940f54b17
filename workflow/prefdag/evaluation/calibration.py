"""Reliability of a reward: calibration, accuracy by length, and rank correlation with length.

Shapes: M pairs (or N responses), G prompts, B bins. Every interval is a bootstrap over prompts.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from prefdag.evaluation.bootstrap import FEWEST_PROMPTS, bootstrap_interval
from prefdag.seeds import generator

BINS = 10  # of confidence, each 5 percentage points wide
CHANCE_DRAWS = 200


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error of a reward.

    Attributes:
        bins: A row for each bin that has pairs.
        error: Expected calibration error; `low` and `high` are its interval.
        by_chance: The error's mean for a calibrated reward (see `calibration`).
    """

    bins: pd.DataFrame
    error: float
    low: float
    high: float
    by_chance: float


def pairs_of(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the pairs of a `held_out.csv`: columns gap (reward of better minus worse), tokens (likewise), prompt.

    A comparison of K responses, best first, gives K (K - 1) / 2 pairs.
    """
    rewards, tokens = ([column for column in table if column.startswith(f"{prefix}_")] for prefix in (name, "tokens"))
    parts = [
        {"gap": table[rewards[a]] - table[rewards[b]], "tokens": table[tokens[a]] - table[tokens[b]]}
        for a, b in combinations(range(len(rewards)), 2)
    ]
    return pd.concat([pd.DataFrame({**part, "prompt": table["prompt"]}) for part in parts], ignore_index=True)


def ranked_correctly(gaps) -> np.ndarray:
    """Return 1 where the better response has the larger reward, 0.5 for a tie, else 0: gaps [M] -> [M]."""
    gaps = np.asarray(gaps, dtype=float)
    return (gaps > 0) + 0.5 * (gaps == 0)


def calibration(pairs: pd.DataFrame, *, seed: str, bootstrap: int = 1000) -> Calibration:
    """Compare sigmoid(gap) with the observed accuracy, and compute the expected calibration error.

    The order of a pair is arbitrary, so each pair counts in both orders: sigmoid(gap) with outcome 1 and sigmoid(-gap)
    with outcome 0. The lower half of [0, 1] then mirrors the upper, so it suffices to use the order that the reward
    prefers: confidence sigmoid(|gap|) in [0.5, 1], outcome `ranked_correctly`. The error is the mean of
    |observed - confidence| over bins, weighted by their pairs. By chance it is above 0 for a calibrated reward too;
    `by_chance` is its mean for independent outcomes with the predicted probabilities.

    Args:
        pairs: Columns gap and prompt.
        seed: Name of the random stream.
        bootstrap: Number of resamples.

    Reference: Guo et al. 2017, eq. 3.
    """
    confidence = 1 / (1 + np.exp(-np.abs(pairs["gap"].to_numpy(float))))
    outcome = ranked_correctly(pairs["gap"])
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    prompts, num = pairs["prompt"].to_numpy(), len(pairs)
    rows = []
    for number in np.unique(place):
        inside = place == number
        low, high = _interval(outcome[inside], prompts[inside], f"{seed}/{number}", bootstrap)
        observed = {"observed": outcome[inside].mean(), "low": low, "high": high, "pairs": int(inside.sum())}
        rows.append({"bin": int(number), "confidence": confidence[inside].mean(), **observed})
    names, owner = np.unique(prompts, return_inverse=True)
    excess = np.zeros((len(names), BINS))
    np.add.at(excess, (owner, place), outcome - confidence)
    weights = resample_prompts(len(names), seed=seed, bootstrap=bootstrap)
    errors = np.abs(weights @ excess).sum(1) / (weights @ np.bincount(owner))
    low, high = np.quantile(errors, [0.025, 0.975])
    draws = generator(0, "calibrated", seed)
    chance = [
        np.abs(np.bincount(place, (draws.random(num) < confidence) - confidence)).sum() / num
        for _ in range(CHANCE_DRAWS)
    ]
    error = float(np.abs(excess.sum(0)).sum() / num)
    return Calibration(pd.DataFrame(rows), error, float(low), float(high), float(np.mean(chance)))


def length_bins(tokens) -> list[tuple[float, float]]:
    """Return bins (low, high] of chosen minus rejected tokens [M]: thirds of each sign's sizes, and 0."""
    sizes = np.sort(np.abs(np.asarray(tokens)))
    unequal = sizes[sizes > 0]
    first, second, most = (float(unequal[-(-third * len(unequal) // 3) - 1]) for third in (1, 2, 3))
    edges = list(dict.fromkeys([0.0, first, second, most]))
    longer = [(low, high) for low, high in zip(edges, edges[1:], strict=False)]
    return [*((-high - 1, -low - 1) for low, high in reversed(longer)), (-1.0, 0.0), *longer]


def accuracy_by_length(pairs: pd.DataFrame, *, seed: str, bootstrap: int = 1000) -> pd.DataFrame:
    """Return the share of correctly ranked pairs in each bin of `length_bins`.

    Columns: label, accuracy, low, high (interval over prompts), pairs.
    """
    if not pairs["tokens"].any():
        return pd.DataFrame()
    rows = []
    for low, high in length_bins(pairs["tokens"]):
        inside = pairs[(pairs["tokens"] > low) & (pairs["tokens"] <= high)]
        if len(inside):
            correct = ranked_correctly(inside["gap"])
            interval = _interval(correct, inside["prompt"], f"{seed}/{low:g}", bootstrap)
            row = {"label": _span(int(low) + 1, int(high)), "accuracy": correct.mean()}
            rows.append({**row, "low": interval[0], "high": interval[1], "pairs": len(inside)})
    return pd.DataFrame(rows)


def _span(first: int, last: int) -> str:
    text = f"{first:+d}" if first == last else f"{first:+d} to {last:+d}"
    return text.replace("+0", "0").replace("-", "−")


def spearman(left, other, prompts, *, seed: str, bootstrap: int = 1000) -> tuple[float, float, float]:
    """Return Spearman's rank correlation of two columns [N] with its interval over prompts [N].

    Ties share their mean rank. Prompts are resampled with all their rows, and each resample is ranked again. NaN where
    a column is constant.
    """
    first, second = (np.unique(np.asarray(values), return_inverse=True)[1] for values in (left, other))
    names, owner = np.unique(np.asarray(prompts), return_inverse=True)
    resamples = resample_prompts(len(names), seed=seed, bootstrap=bootstrap)
    values = np.array([_correlation(first, second, weights[owner]) for weights in resamples])
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (np.nan, np.nan)
    return _correlation(first, second, np.ones(len(owner))), float(low), float(high)


def _correlation(left: np.ndarray, other: np.ndarray, weights: np.ndarray) -> float:
    """Return the rank correlation of rows repeated `weights` times; left, other: indices of distinct values [N]."""
    ranks = []
    for place in (left, other):
        counts = np.bincount(place, weights)
        rank = (np.cumsum(counts) - (counts - 1) / 2)[place]  # equal values share the mean of their ranks
        ranks.append(rank - weights @ rank / weights.sum())
    spread = np.sqrt((weights @ ranks[0] ** 2) * (weights @ ranks[1] ** 2))
    return float(weights @ (ranks[0] * ranks[1]) / spread) if spread else float("nan")


def resample_prompts(num_prompts: int, *, seed: str, bootstrap: int) -> np.ndarray:
    """Return how often each prompt occurs in each resample: [bootstrap, G]; a row sums to G."""
    random = generator(0, "prompts", seed)
    return random.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=bootstrap).astype(float)


def _interval(values: np.ndarray, prompts, seed: str, bootstrap: int) -> tuple[float, float]:
    """Return the bootstrap interval; NaN for too few prompts."""
    if len(np.unique(prompts)) < FEWEST_PROMPTS:
        return np.nan, np.nan
    low, high = bootstrap_interval(values, prompts, seed=seed, bootstrap=bootstrap)
    return low, high
