"""How far a reward can be trusted: calibration, accuracy by length, and rank correlation with length.

Shapes: M pairs (or N responses), G prompts, B bins. Every interval is a bootstrap over prompts.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from prefdag.evaluation.bootstrap import bootstrap_interval
from prefdag.seeds import generator

BINS = 10  # of confidence, each 5 percentage points wide
CHANCE_DRAWS = 200
FEWEST_PROMPTS = 5  # of a bin with an interval: resamples of fewer say little of any other


@dataclass(frozen=True)
class Calibration:
    """bins: a row for each bin that holds pairs; error, low, high: expected calibration error; by_chance: see there."""

    bins: pd.DataFrame
    error: float
    low: float
    high: float
    by_chance: float


def pairs_of(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Every ordered pair of a `held_out.csv`: columns gap (reward of better minus worse), tokens (likewise), prompt.

    A comparison of K responses, best first, is K (K - 1) / 2 pairs.
    """
    rewards, tokens = ([column for column in table if column.startswith(f"{what}_")] for what in (name, "tokens"))
    parts = [
        {"gap": table[rewards[a]] - table[rewards[b]], "tokens": table[tokens[a]] - table[tokens[b]]}
        for a, b in combinations(range(len(rewards)), 2)
    ]
    return pd.concat([pd.DataFrame({**part, "prompt": table["prompt"]}) for part in parts], ignore_index=True)


def is_right(gaps) -> np.ndarray:
    """1 where the better response has the larger reward, ties a half: gaps [M] -> [M]."""
    gaps = np.asarray(gaps, dtype=float)
    return (gaps > 0) + 0.5 * (gaps == 0)


def calibration(pairs: pd.DataFrame, *, seed: str, bootstrap: int = 1000) -> Calibration:
    """What sigmoid(gap) predicts against what is observed, and the expected calibration error (Guo et al. 2017, eq. 3).

    Which response of a pair is called first is our choice, so each pair stands in both orders: sigmoid(gap) with
    outcome 1 and sigmoid(-gap) with outcome 0. The lower half of [0, 1] then mirrors the upper, and it is enough to
    read the order that the reward prefers: confidence sigmoid(|gap|) in [0.5, 1], outcome `is_right`. The error weighs
    |observed - confidence| of a bin by its pairs. It is above 0 for a calibrated reward too, by chance; `by_chance` is
    its mean where outcomes are drawn with the predicted probabilities, independently.
    """
    confidence = 1 / (1 + np.exp(-np.abs(pairs["gap"].to_numpy(float))))
    outcome = is_right(pairs["gap"])
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
    weights = prompt_weights(len(names), seed=seed, bootstrap=bootstrap)
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
    """Bins (low, high], of chosen minus rejected tokens [M], symmetric about 0: thirds of their sizes, and 0 alone."""
    sizes = np.sort(np.abs(np.asarray(tokens)))
    unequal = sizes[sizes > 0]
    first, second, most = (float(unequal[-(-third * len(unequal) // 3) - 1]) for third in (1, 2, 3))
    edges = list(dict.fromkeys([0.0, first, second, most]))
    longer = [(low, high) for low, high in zip(edges, edges[1:], strict=False)]
    return [*((-high - 1, -low - 1) for low, high in reversed(longer)), (-1.0, 0.0), *longer]


def accuracy_by_length(pairs: pd.DataFrame, *, seed: str, bootstrap: int = 1000) -> pd.DataFrame:
    """Share of pairs ranked right by how much longer the better response is: a row a bin of `length_bins` with pairs.

    Columns: label, accuracy, low, high (over prompts), pairs.
    """
    if not pairs["tokens"].any():
        return pd.DataFrame()
    rows = []
    for low, high in length_bins(pairs["tokens"]):
        inside = pairs[(pairs["tokens"] > low) & (pairs["tokens"] <= high)]
        if len(inside):
            correct = is_right(inside["gap"])
            interval = _interval(correct, inside["prompt"], f"{seed}/{low:g}", bootstrap)
            about = {"label": _span(int(low) + 1, int(high)), "accuracy": correct.mean()}
            rows.append({**about, "low": interval[0], "high": interval[1], "pairs": len(inside)})
    return pd.DataFrame(rows)


def _span(first: int, last: int) -> str:
    text = f"{first:+d}" if first == last else f"{first:+d} to {last:+d}"
    return text.replace("+0", "0").replace("-", "−")


def spearman(left, other, prompts, *, seed: str, bootstrap: int = 1000) -> tuple[float, float, float]:
    """Spearman's rank correlation of two columns [N] (ties share their mean rank), with its interval over prompts [N].

    All rows of a drawn prompt come together and are ranked anew. NaN where a column has one value alone.
    """
    first, second = (np.unique(np.asarray(values), return_inverse=True)[1] for values in (left, other))
    names, owner = np.unique(np.asarray(prompts), return_inverse=True)
    drawn = prompt_weights(len(names), seed=seed, bootstrap=bootstrap)
    found = np.array([_correlation(first, second, weights[owner]) for weights in drawn])
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (np.nan, np.nan)
    return _correlation(first, second, np.ones(len(owner))), float(low), float(high)


def _correlation(left: np.ndarray, other: np.ndarray, weights: np.ndarray) -> float:
    """Of rows that stand `weights` times each, by the places [N] of their values among the distinct ones."""
    ranks = []
    for place in (left, other):
        held = np.bincount(place, weights)
        rank = (np.cumsum(held) - (held - 1) / 2)[place]  # the mean of the ranks that equal values share
        ranks.append(rank - weights @ rank / weights.sum())
    spread = np.sqrt((weights @ ranks[0] ** 2) * (weights @ ranks[1] ** 2))
    return float(weights @ (ranks[0] * ranks[1]) / spread) if spread else float("nan")


def prompt_weights(num_prompts: int, *, seed: str, bootstrap: int) -> np.ndarray:
    """How often each prompt is drawn in each resample: [bootstrap, G], rows that sum to G."""
    draws = generator(0, "prompts", seed)
    return draws.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=bootstrap).astype(float)


def _interval(values: np.ndarray, prompts, seed: str, bootstrap: int) -> tuple[float, float]:
    """NaN for a bin of too few prompts."""
    if len(np.unique(prompts)) < FEWEST_PROMPTS:
        return np.nan, np.nan
    low, high = bootstrap_interval(values, prompts, seed=seed, bootstrap=bootstrap)
    return low, high
