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
    """The mean verdict over all rows, a tie a half, with its interval; a win is a verdict above a half."""

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
    """Win rate of `verdicts` [N] (1 win, 0.5 tie, 0 loss, or between) with the bootstrap interval over `prompts` [N].

    Between lie the mean of two orders that disagree in part, and preferences given as probabilities.
    """
    verdicts = np.asarray(verdicts, dtype=np.float64)
    assert ((verdicts >= 0) & (verdicts <= 1)).all(), "a verdict lies between 0 and 1"
    wins, ties, losses = (int(found.sum()) for found in (verdicts > 0.5, verdicts == 0.5, verdicts < 0.5))
    low, high = bootstrap_interval(verdicts, prompts, seed=seed, bootstrap=bootstrap, level=level)
    error = standard_error(verdicts, prompts)
    return WinRate(float(verdicts.mean()), low, high, error, wins, ties, losses, len(verdicts))


def difference(ours, theirs, *, seed: str, bootstrap: int = 2000, level: float = 0.95) -> Summary:
    """Mean difference of prompt means: `ours` [S, G] of S seeds, `theirs` [T, G] of T.

    The prompts of both sides are the same and are drawn together, so what is hard for both cancels. See `of_seeds`.
    """
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    return of_seeds(ours[:, None, :] - theirs[None, :, :], seed=seed, bootstrap=bootstrap, level=level)


def of_seeds(values, *, seed: str, bootstrap: int = 2000, level: float = 0.95) -> Summary:
    """Mean of `values` [S, T, G] with the hierarchical bootstrap: seeds of either side, and prompts, drawn anew.

    With one seed a side it is the bootstrap over prompts alone (`summarise`). Otherwise the interval covers what
    another training would have given as well, as far as so few seeds show it: drawn from S, the variance between seeds
    comes out small by (S - 1) / S. `se` is then the draws' standard deviation. `n` counts prompts.
    """
    values = np.asarray(values, dtype=np.float64)
    num_ours, num_theirs, num_prompts = values.shape
    if num_ours == num_theirs == 1:
        return summarise(values[0, 0], np.arange(num_prompts), seed=seed, bootstrap=bootstrap, level=level)
    _by_prompt(values.mean(axis=(0, 1)), np.arange(num_prompts))  # its checks
    draws = generator(0, "bootstrap", seed)
    means = np.empty(bootstrap)
    for index in range(bootstrap):
        prompts = np.bincount(draws.integers(0, num_prompts, num_prompts), minlength=num_prompts) / num_prompts
        by_seed = values @ prompts
        rows = draws.integers(0, num_ours, num_ours)
        means[index] = by_seed[rows][:, draws.integers(0, num_theirs, num_theirs)].mean()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Summary(float(values.mean()), float(low), float(high), float(means.std(ddof=1)), num_prompts)


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
