"""Exact laws of responses that are selected from samples of a reference: Best-of-N and rejection sampling.

`reference` and `reward` are [Y]: the probability and the reward of every response to one prompt.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Candidates = tuple[int, ...]


def best_of_n(reference: Tensor, reward: Tensor, n: int) -> Tensor:
    """Return the law [Y] of the best of n independent samples: F(y)^n - F(<y)^n; equal rewards share by `reference`.

    Distilling it T times gives the best of n^T (RAFT, Dong et al. 2023, arXiv 2304.06767).

    Reference: Beirami et al. 2024, arXiv 2401.01879.
    """
    below = (reference * (reward < reward[:, None])).sum(1)
    level = (reference * (reward == reward[:, None])).sum(1)
    return ((below + level) ** n - below**n) * torch.where(level > 0, reference / level, 0.0)


@dataclass(frozen=True)
class Rejection:
    """Rejection sampling of a reference: law and acceptance of each response [Y], and how often one is accepted."""

    law: Tensor
    acceptance: Tensor
    rate: Tensor


def rejection(reference: Tensor, reward: Tensor, beta: float) -> Rejection:
    """Accept a fresh sample with probability exp((r - max r) / beta): the law is pi_ref exp(r / beta) / Z.

    Args:
        reference: probabilities of the reference, [K].
        reward: of each response, [K].
        beta: of the optimum.

    Reference: Liu et al. 2023 (RSO), arXiv 2309.06657, section 3.2.
    """
    acceptance = ((reward - reward.max()) / beta).exp()
    rate = reference @ acceptance
    return Rejection(reference * acceptance / rate, acceptance, rate)


def inclusion(reward: Tensor, beta: float, accepted: int) -> Tensor:
    """Return each candidate's probability [K] to be among the `accepted` ones of the published algorithm.

    It sweeps over the candidates in their order, accepts one with probability exp((r - max r) / beta), max over those
    that a sweep begins with, removes the accepted ones after the sweep, and ends when enough are accepted.

    Reference: Liu et al. 2023, algorithm 1.
    """
    rewards, result = reward.tolist(), [0.0] * len(reward)
    # The state of a sweep: probability, candidates that it began with, place in it, accepted in it, accepted before.
    pending: list[tuple[float, Candidates, int, Candidates, Candidates]] = [
        (1.0, tuple(range(len(rewards))), 0, (), ())
    ]
    while pending:
        chance, begun, at, now, before = pending.pop()
        if len(now) + len(before) == min(accepted, len(rewards)):
            for candidate in (*now, *before):
                result[candidate] += chance
        elif at == len(begun):
            pending.append((chance, tuple(c for c in begun if c not in now), 0, (), (*before, *now)))
        else:
            best = max(rewards[candidate] for candidate in begun)
            accept = math.exp((rewards[begun[at]] - best) / beta)
            pending.append((chance * accept, begun, at + 1, (*now, begun[at]), before))
            if accept < 1:
                pending.append((chance * (1 - accept), begun, at + 1, now, before))
    return torch.tensor(result, dtype=torch.float64)
