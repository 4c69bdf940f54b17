"""Laws of pairs among the scored samples of one prompt that draw, or keep ties; `losses.pair_choice` has the others.

A sample is its index, so samples of equal text stay apart. A pair is (chosen, rejected).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Pair = tuple[int, int]


def best_of_n(scores: Scores) -> list[Pair]:
    """Return the pair of the best sample, the first of equal ones, and the last of the worst.

    Samples of one score still have a best one: leaving their prompt out would change the law of what is
    distilled. For a loss that reads chosen responses alone.
    """
    return [(int(scores.argmax()), len(scores) - 1 - int(scores[::-1].argmin()))] if len(scores) else []


def rejection_sampled(scores: Scores, beta: float, keep: int, random: np.random.Generator) -> list[int]:
    """Return the samples that statistical rejection accepts, in the order of acceptance: at most `keep`.

    Sweeps over the candidates accept each with exp((score - largest) / beta), where the largest is that of the
    candidates that remain, and remove what they accept. Candidates are samples of a policy pi, so a response that pi
    gives often is there often, and what a sweep accepts follows pi exp(score / beta) / Z. The published code has the
    text as the key of a candidate: it merges repeated responses and loses pi.

    Args:
        scores: [N], of candidates.
        beta: the temperature of the acceptance.
        keep: how many are accepted; fewer if there are fewer candidates.
        random: draws one uniform number per candidate of a sweep.

    Reference: Liu et al. 2024, Statistical Rejection Sampling Improves Preference Optimization, algorithm 1.
    """
    accepted: list[int] = []
    remaining = np.arange(len(scores))
    while len(accepted) < keep and len(remaining):
        left = scores[remaining]
        passed = random.random(len(left)) < np.exp((left - left.max()) / beta)
        accepted += remaining[passed].tolist()
        remaining = remaining[~passed]
    return accepted[:keep]


def disjoint_pairs(samples: Sequence[int], scores: Scores) -> list[Pair]:
    """Return the pairs of sample 1 and 2, 3 and 4, ..., the better one chosen; pairs of equal scores left out."""
    pairs = zip(samples[::2], samples[1::2], strict=False)
    return [(one, two) if scores[one] > scores[two] else (two, one) for one, two in pairs if scores[one] != scores[two]]


def bradley_terry(pair: Pair, scores: Scores, uniform: float) -> Pair:
    """Return the pair in the order of a sampled label: the better is chosen with probability s(difference of scores).

    Args:
        pair: the better sample first.
        scores: [N].
        uniform: a uniform number in [0, 1) of this pair.
    """
    better, worse = pair
    probability = 1 / (1 + np.exp(-(scores[better] - scores[worse])))
    return pair if uniform < probability else (worse, better)
