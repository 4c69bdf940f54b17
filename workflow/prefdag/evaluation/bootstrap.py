"""Means and win rates with standard errors and bootstrap intervals, clustered by prompt.

Generations of one prompt resemble one another, so rows are not independent samples: every interval treats the prompt as
the unit of sampling. Shapes: N rows, G prompts.
"""

from dataclasses import asdict, dataclass

import numpy as np

from prefdag.errors import UserError
from prefdag.seeds import generator

FEWEST_PROMPTS = 5  # of a part of the prompts, below which it has no interval
RESAMPLED_AT_ONCE = 4_000_000  # sampled prompts in memory at a time: 32 MB of indices


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
    """The mean verdict over all rows, a tie counting half, with its interval; a win is a verdict above 0.5."""

    win_rate: float
    low: float
    high: float
    standard_error: float
    wins: int
    ties: int
    losses: int
    n: int

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


def standard_error(values, prompts) -> float:
    """Return the cluster-robust standard error of the mean of `values` [N], clustered by `prompts` [N].

    sqrt(G/(G-1) * sum_g (sum_{i in g} (x_i - mean))^2) / N. With one row per prompt this is s / sqrt(N).

    Raises:
        UserError: There are fewer than two prompts, or a value is not finite.

    Reference: Cameron and Miller 2015, eq. 11, for a mean.
    """
    values, sums, counts = _by_prompt(values, prompts)
    residuals = sums - counts * values.mean()
    num_prompts = len(sums)
    return float(np.sqrt(num_prompts / (num_prompts - 1) * np.square(residuals).sum()) / len(values))


def bootstrap_interval(values, prompts, *, seed: str, bootstrap: int = 2000, level: float = 0.95):
    """Return the percentile bootstrap interval (low, high) of a mean, resampling prompts with all their rows.

    Args:
        values: Numbers [N].
        prompts: The prompt of each row [N].
        seed: Name of the random stream.
        bootstrap: Number of resamples.
        level: Coverage of the interval.

    Raises:
        UserError: There are fewer than two prompts, or a value is not finite.

    Reference: Efron and Tibshirani 1993, ch. 13; Field and Welsh 2007, for clusters.
    """
    _, sums, counts = _by_prompt(values, prompts)
    num_prompts = len(sums)
    random = generator(0, "bootstrap", seed)
    chunk = max(1, RESAMPLED_AT_ONCE // num_prompts)
    means = np.empty(bootstrap)
    for start in range(0, bootstrap, chunk):
        size = min(chunk, bootstrap - start)
        sample = random.integers(0, num_prompts, size=(size, num_prompts))
        means[start : start + size] = sums[sample].sum(axis=1) / counts[sample].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share_interval(values, prompts, *, seed: str, bootstrap: int = 2000) -> tuple[float, float]:
    """Return the 95% interval of a share, the mean of `values` [N] between 0 and 1, over `prompts` [N].

    It is `bootstrap_interval`'s, and Wilson's over prompts where all values are 0 or all 1: a bootstrap would have no
    width. Only ties have none.
    """
    values = np.asarray(values, dtype=np.float64)
    if not (np.all(values == 0) or np.all(values == 1)):
        return bootstrap_interval(values, prompts, seed=seed, bootstrap=bootstrap)
    low, high = wilson(values[0], len(np.unique(prompts)))
    return float(low), float(high)


def summarise(values, prompts, *, seed: str, bootstrap: int = 2000, level: float = 0.95) -> Summary:
    """Return the mean of `values` [N], its standard error and its bootstrap interval over `prompts` [N]."""
    low, high = bootstrap_interval(values, prompts, seed=seed, bootstrap=bootstrap, level=level)
    values = np.asarray(values, dtype=np.float64)
    return Summary(float(values.mean()), low, high, standard_error(values, prompts), len(values))


def win_rate(verdicts, prompts, *, seed: str, bootstrap: int = 2000) -> WinRate:
    """Return the win rate of `verdicts` [N] with its interval over `prompts` [N].

    A verdict is 1 for a win, 0.5 for a tie, 0 for a loss; other values between 0 and 1 are the mean of two orders that
    disagree in part, or a preference expressed as a probability.
    """
    verdicts = np.asarray(verdicts, dtype=np.float64)
    assert ((verdicts >= 0) & (verdicts <= 1)).all(), "a verdict is between 0 and 1"
    wins, ties, losses = (int(rows.sum()) for rows in (verdicts > 0.5, verdicts == 0.5, verdicts < 0.5))
    low, high = share_interval(verdicts, prompts, seed=seed, bootstrap=bootstrap)
    error = standard_error(verdicts, prompts)
    return WinRate(float(verdicts.mean()), low, high, error, wins, ties, losses, len(verdicts))


def wilson(share: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95% interval of a share of `number` independent trials (Wilson 1927), which stays within 0 and 1."""
    z = 1.959964
    centre = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * np.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return np.minimum(centre - half, share), np.maximum(centre + half, share)  # rounding may leave the share out


def _by_prompt(values, prompts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `values` as float64 [N], and the sum [G] and number [G] of each prompt's rows."""
    values = np.asarray(values, dtype=np.float64)
    prompts = np.asarray(prompts)
    assert values.shape == prompts.shape and values.ndim == 1, (values.shape, prompts.shape)
    if not np.isfinite(values).all():
        raise UserError(
            f"row {int(np.flatnonzero(~np.isfinite(values))[0]) + 1}: the value to average is not a finite number; "
            "check what wrote it"
        )
    names, where = np.unique(prompts, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"an interval over prompts needs at least 2 prompts, got {len(names)}: evaluate on more prompts"
        )
    return values, np.bincount(where, weights=values), np.bincount(where).astype(np.float64)
