"""Means, win rates and proportions with their uncertainty, over prompts rather than rows.

Several generations of one prompt resemble one another, so rows are no independent draws: every
interval here treats the prompt as the unit of sampling. Shapes: N rows, G prompts.
"""

from dataclasses import asdict, dataclass

import numpy as np

from prefdag.errors import UserError
from prefdag.seeds import generator

RESAMPLED_AT_ONCE = 4_000_000  # prompt draws held in memory together: 32 MB of indices


@dataclass(frozen=True)
class Summary:
    """A mean over rows, its standard error and its interval; `n` counts rows."""

    mean: float
    low: float
    high: float
    se: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


@dataclass(frozen=True)
class WinRate:
    """Wins plus half the ties, over all rows, with its interval."""

    win_rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    n: int

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


def standard_error(values, prompts) -> float:
    """Cluster-robust standard error of the mean of `values` [N], clustered by `prompts` [N].

    sqrt(G/(G-1) * sum_g (sum_{i in g} (x_i - mean))^2) / N   (Cameron and Miller 2015, eq. 11, for a mean).
    With one row a prompt it is the familiar s / sqrt(N). Raises UserError for fewer than two prompts.
    """
    values, sums, counts = _by_prompt(values, prompts)
    residuals = sums - counts * values.mean()
    num_prompts = len(sums)
    return float(np.sqrt(num_prompts / (num_prompts - 1) * np.square(residuals).sum()) / len(values))


def bootstrap_interval(values, prompts, *, seed: str, bootstrap: int = 2000, level: float = 0.95):
    """Percentile interval (low, high) of the mean of `values` [N]; all rows of a drawn prompt [N] come together.

    `seed` names the random stream. Efron and Tibshirani 1993, ch. 13; Field and Welsh 2007 for clusters.
    Raises UserError for fewer than two prompts, for a value that is no finite number.
    """
    _, sums, counts = _by_prompt(values, prompts)
    num_prompts = len(sums)
    draws = generator(0, "bootstrap", seed)
    chunk = max(1, RESAMPLED_AT_ONCE // num_prompts)
    means = np.empty(bootstrap)
    for start in range(0, bootstrap, chunk):
        size = min(chunk, bootstrap - start)
        chosen = draws.integers(0, num_prompts, size=(size, num_prompts))
        means[start : start + size] = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(values, prompts, *, seed: str, bootstrap: int = 2000, level: float = 0.95) -> Summary:
    """Mean of `values` [N] with the standard error and the bootstrap interval over `prompts` [N]."""
    low, high = bootstrap_interval(values, prompts, seed=seed, bootstrap=bootstrap, level=level)
    values = np.asarray(values, dtype=np.float64)
    return Summary(float(values.mean()), low, high, standard_error(values, prompts), len(values))


def win_rate(verdicts, prompts, *, seed: str, bootstrap: int = 2000, level: float = 0.95) -> WinRate:
    """Win rate of `verdicts` [N] (1 win, 0.5 tie, 0 loss) with the bootstrap interval over `prompts` [N]."""
    verdicts = np.asarray(verdicts, dtype=np.float64)
    wins, ties, losses = (int((verdicts == verdict).sum()) for verdict in (1.0, 0.5, 0.0))
    assert wins + ties + losses == len(verdicts), "a verdict is 1, 0.5 or 0"
    low, high = bootstrap_interval(verdicts, prompts, seed=seed, bootstrap=bootstrap, level=level)
    return WinRate(float(verdicts.mean()), low, high, wins, ties, losses, len(verdicts))


def _by_prompt(values, prompts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """values [N] as float64, and sum [G] and number [G] of the rows of each prompt."""
    values = np.asarray(values, dtype=np.float64)
    prompts = np.asarray(prompts)
    assert values.shape == prompts.shape and values.ndim == 1, (values.shape, prompts.shape)
    if not np.isfinite(values).all():
        raise UserError(
            f"row {int(np.flatnonzero(~np.isfinite(values))[0])}: the value to average is not a finite number; "
            "look for what wrote it"
        )
    names, where = np.unique(prompts, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"an interval over prompts needs at least 2 prompts, got {len(names)}: evaluate on more prompts"
        )
    return values, np.bincount(where, weights=values), np.bincount(where).astype(np.float64)
