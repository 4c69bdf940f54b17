"""Best-of-N from a pool of n scored samples per prompt: reward, win rate and KL divergence for every N up to n.

Best-of-N samples N responses from a base policy and returns the one of highest reward (Stiennon et al. 2020, Nakano et
al. 2021). All functions are exact over all subsets of a pool and use no random numbers. Shapes: G prompts, n samples.
"""

from math import comb, log

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def subset_cdf(n: int, best_of: int) -> Values:
    """Return the probability that all of a random subset of N are among the k lowest of n, for k = 0 to n: [n + 1].

    It is C(k, N) / C(n, N). Its increments C(k, N - 1) / C(n, N) are the probabilities that the sample of rank k + 1 is
    the best of the subset, and so the weights of the unbiased estimator over a sorted pool.

    Reference: Nakano et al. 2021, appendix I.
    """
    assert 1 <= best_of <= n, (best_of, n)
    subsets = comb(n, best_of)  # integers: C(1000, 500) overflows a float
    return np.array([comb(k, best_of) / subsets for k in range(n + 1)])


def expected_value(selected_by: Values, measured: Values, best_of: int) -> Values:
    """Return an unbiased estimate of the value of the best of N, for each prompt [G].

    Args:
        selected_by: The rewards that select the best response [G, n]; ties are broken at random.
        measured: The values to average [G, n].
        best_of: N, at most n.
    """
    order = np.argsort(selected_by, axis=1, kind="stable")
    ranked, values = (np.take_along_axis(column, order, axis=1) for column in (selected_by, measured))
    cdf = subset_cdf(selected_by.shape[1], best_of)
    below, upto = _block_ends(ranked)
    return ((cdf[upto] - cdf[below]) / (upto - below) * values).sum(axis=1)


def win_rates(selected_by: Values, measured: Values, best_of: int) -> Values:
    """Return an unbiased estimate of the probability that the best of N beats one more sample, ties half: [G].

    This averages over every sample and every subset of N of the n - 1 others. Without ties, and where the selecting
    reward also measures, it is N / (N + 1).

    Args:
        selected_by: The rewards that select the best response [G, n].
        measured: The values that decide who wins [G, n].
        best_of: N, below n.
    """
    return np.array([_win_rate(*row, best_of) for row in zip(selected_by, measured, strict=True)])


def _win_rate(selected_by: Values, measured: Values, best_of: int) -> float:
    """Return one prompt's win rate, from [n, n] tables of the selected sample and the opponent, which is not ranked."""
    n = len(selected_by)
    selected, other = selected_by[:, None], selected_by[None, :]
    below = (other < selected).sum(axis=1, keepdims=True) - (other < selected)
    upto = (other <= selected).sum(axis=1, keepdims=True) - (other <= selected)
    cdf = subset_cdf(n - 1, best_of)
    # The diagonal would compare a sample with itself.
    chance = np.divide(cdf[upto] - cdf[below], upto - below, out=np.zeros((n, n)), where=~np.eye(n, dtype=bool))
    verdicts = 0.5 * (1 + np.sign(measured[:, None] - measured[None, :]))
    return float((chance * verdicts).sum() / n)


def divergence_bound(best_of: int) -> float:
    """Return log N - (N - 1) / N nats, the KL of Best-of-N to its base policy without ties; with ties, an upper bound.

    Reference: Beirami et al. 2024, theorem 1, arXiv 2401.01879.
    """
    return log(best_of) - (best_of - 1) / best_of


def divergences(rewards: Values, best_of: int) -> Values:
    """Estimate the KL of Best-of-N to its base policy, in nats, for each prompt [G], from the ties in a pool.

    Let F be the distribution function of the reward under the base policy. Where F is continuous, Best-of-N has
    N F^(N - 1) times the base's density. A level of the reward that the base reaches with probability F - F', Best-of-N
    reaches with F^N - F'^N, and it chooses uniformly among the responses of one level. So
    KL = integral of N u^(N - 1) log(N u^(N - 1)) over the u = F without ties + sum over the levels with ties of
    (F^N - F'^N) log((F^N - F'^N) / (F - F')).
    F is estimated by ranks: a block of m equal rewards is a level from k / n to (k + m) / n, and a reward without ties
    counts as continuous over its 1 / n. Without ties the result is `divergence_bound` for every pool; where all rewards
    are equal it is 0. With levels the bias is about -1 / n: for levels of probability 1/2, 3/10 and 1/5 and N = 8 the
    KL is 1.069 nats, and pools of 8, 16, 64 and 256 give 0.94, 1.01, 1.05 and 1.06 on average.

    Args:
        rewards: The selecting rewards [G, n].
        best_of: N.

    Reference: Beirami et al. 2024, section 3.
    """
    n = rewards.shape[1]
    below, upto = _block_ends(np.sort(rewards, axis=1))
    u = np.arange(n + 1) / n
    # The antiderivative of N u^(N - 1) log(N u^(N - 1)): u^N (log N + (N - 1) (log u - 1 / N)), 0 at 0.
    logs = np.log(np.maximum(u, 1 / n))
    integral = u**best_of * (log(best_of) + (best_of - 1) * (logs - 1 / best_of))
    mass = u[upto] ** best_of - u[below] ** best_of
    size = upto - below
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.where(mass > 0, mass * np.log(mass / (size / n)), 0.0)
    return np.where(size == 1, integral[upto] - integral[below], level / size).sum(axis=1)


def _block_ends(ranked: Values) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each entry of sorted rows [G, n], how many of its row are lower, and how many are not higher."""
    n = ranked.shape[1]
    rises = ranked[:, 1:] > ranked[:, :-1]
    starts = np.pad(np.where(rises, np.arange(1, n), 0), ((0, 0), (1, 0)))
    ends = np.pad(np.where(rises, np.arange(1, n), n), ((0, 0), (0, 1)), constant_values=n)
    return np.maximum.accumulate(starts, axis=1), np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]


def sizes(n: int) -> list[int]:
    """Return N = 1, 2, 4, ... up to n, and n itself."""
    return sorted({2**k for k in range(n.bit_length())} | {n})
