"""Best-of-N, from a pool of n scored samples per prompt: reward, win rate and divergence for every N up to n.

Best-of-N draws N samples from a base policy and answers with the one of highest reward (Stiennon et al. 2020, Nakano et
al. 2021). Everything here is exact over all the subsets that a pool has, so it needs no drawing. Shapes: G prompts, n
samples of each.
"""

from math import comb, log

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def within(n: int, best_of: int) -> Values:
    """Probability that a random subset of N lies within the k lowest of n, k = 0 to n: C(k, N) / C(n, N), [n + 1].

    From one k to the next it rises by C(k, N - 1) / C(n, N), the probability that the sample of rank k + 1 is the best
    of the subset: weights that turn the sorted pool into the unbiased estimator (Nakano et al. 2021, appendix I).
    """
    assert 1 <= best_of <= n, (best_of, n)
    subsets = comb(n, best_of)  # whole numbers: C(1000, 500) is no float
    return np.array([comb(k, best_of) / subsets for k in range(n + 1)])


def expected(selected_by: Values, measured: Values, best_of: int) -> Values:
    """Expected `measured` [G, n] of the response that `selected_by` [G, n] ranks best of N: [G], unbiased.

    Samples that `selected_by` rates alike are equally likely to be taken.
    """
    order = np.argsort(selected_by, axis=1, kind="stable")
    ranked, values = (np.take_along_axis(found, order, axis=1) for found in (selected_by, measured))
    share = within(selected_by.shape[1], best_of)
    below, upto = _block_ends(ranked)
    return ((share[upto] - share[below]) / (upto - below) * values).sum(axis=1)


def win_rates(selected_by: Values, measured: Values, best_of: int) -> Values:
    """Probability that the best of N measures higher than one further sample of its prompt, ties half: [G], unbiased.

    Averaged over every sample and every subset of N of the n - 1 others, so N must be below n. Where what selects is
    what measures and there are no ties, it is N / (N + 1).
    """
    return np.array([_win_rate(*row, best_of) for row in zip(selected_by, measured, strict=True)])


def _win_rate(selected_by: Values, measured: Values, best_of: int) -> float:
    """Of one prompt, [n]. Rows: the sample that is taken; columns: the one it is held against, left out of ranks."""
    n = len(selected_by)
    taken, other = selected_by[:, None], selected_by[None, :]
    below = (other < taken).sum(axis=1, keepdims=True) - (other < taken)
    upto = (other <= taken).sum(axis=1, keepdims=True) - (other <= taken)
    share = within(n - 1, best_of)
    # One's own column has nobody to be taken: it is no comparison.
    chance = np.divide(share[upto] - share[below], upto - below, out=np.zeros((n, n)), where=~np.eye(n, dtype=bool))
    verdicts = 0.5 * (1 + np.sign(measured[:, None] - measured[None, :]))
    return float((chance * verdicts).sum() / n)


def divergence_bound(best_of: int) -> float:
    """log N - (N - 1) / N nats: KL of Best-of-N to its base policy if no two responses are rated alike.

    With ties it is an upper bound (Beirami et al. 2024, theorem 1, arXiv 2401.01879).
    """
    return log(best_of) - (best_of - 1) / best_of


def divergences(rewards: Values, best_of: int) -> Values:
    """KL of Best-of-N to its base policy per prompt, in nats, with the ties that the pool [G, n] shows: [G].

    F is the distribution of the reward under the base policy. Where it is continuous, Best-of-N has log N F^(N - 1)
    times the base's density; a level that the base hits with probability F - F', it hits with F^N - F'^N, and responses
    of one level are equally likely to be taken (Beirami et al. 2024, section 3). So
    KL = integral of N u^(N - 1) log(N u^(N - 1)) over the u = F without ties + sum over the levels with ties of
    (F^N - F'^N) log((F^N - F'^N) / (F - F')).
    Estimated by the pool's own ranks: a block of m equal ratings is a level from k / n to (k + m) / n, a rating that
    stands alone is taken for continuous over its 1 / n. Without ties this is `divergence_bound` whatever the pool, and
    if all are alike 0. With levels it is biased by about 1 / n and right as n grows: for three levels of 1/2, 3/10 and
    1/5, of whose 1.069 nats at N = 8 pools of 8, 16, 64 and 256 show 0.94, 1.01, 1.05 and 1.06 on average.
    """
    n = rewards.shape[1]
    below, upto = _block_ends(np.sort(rewards, axis=1))
    u = np.arange(n + 1) / n
    # The antiderivative of N u^(N - 1) log(N u^(N - 1)): u^N (log N + (N - 1) (log u - 1 / N)), 0 at 0.
    logs = np.log(np.maximum(u, 1 / n))
    whole = u**best_of * (log(best_of) + (best_of - 1) * (logs - 1 / best_of))
    mass = u[upto] ** best_of - u[below] ** best_of
    size = upto - below
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.where(mass > 0, mass * np.log(mass / (size / n)), 0.0)
    return np.where(size == 1, whole[upto] - whole[below], level / size).sum(axis=1)


def _block_ends(ranked: Values) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each entry of rows in order, [G, n]: how many of its row are lower, and how many are not higher."""
    n = ranked.shape[1]
    rises = ranked[:, 1:] > ranked[:, :-1]
    starts = np.pad(np.where(rises, np.arange(1, n), 0), ((0, 0), (1, 0)))
    ends = np.pad(np.where(rises, np.arange(1, n), n), ((0, 0), (0, 1)), constant_values=n)
    return np.maximum.accumulate(starts, axis=1), np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]


def sizes(n: int) -> list[int]:
    """N = 1, 2, 4, ... up to n, and n itself."""
    return sorted({2**k for k in range(n.bit_length())} | {n})
