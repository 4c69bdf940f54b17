"""Which of several scored responses to a prompt become the chosen and the rejected one: indices of scores [N, G]."""

from typing import Literal

import torch
from torch import Tensor

PairRule = Literal["max_min", "max_random", "max_max", "first_two"]


def choose_pair(scores: Tensor, rule: PairRule) -> Tensor:
    """Return (chosen, rejected) of each prompt: [N, 2], -1 twice where both scores are equal.

    - "max_min": the best and the worst (Online-RLHF, SimPO).
    - "max_random": the best, and the first of the others, which is a random one of independent samples.
    - "max_max": the best and the second best.
    - "first_two": the first two, in the order of their scores (Online DPO).

    Reference: Dong et al. 2024, arXiv 2405.07863, section 3.
    """
    best = scores.argmax(1)
    if rule == "max_min":
        pair = torch.stack([best, scores.argmin(1)], 1)
    elif rule == "max_random":
        pair = torch.stack([best, (best == 0).long()], 1)
    elif rule == "max_max":
        pair = scores.argsort(dim=1, descending=True, stable=True)[:, :2]
    else:
        pair = torch.tensor([0, 1], device=scores.device).repeat(len(scores), 1)
    values = scores.gather(1, pair)
    pair = torch.where(values[:, :1] >= values[:, 1:], pair, pair.flip(1))
    return torch.where(values[:, :1] == values[:, 1:], -1, pair)


def first_if_not_worse(scores: Tensor) -> Tensor:
    """Return (chosen, rejected) of the first two responses [N, 2]; of equal scores the first is chosen.

    Reference: Guo et al. 2024 (OAIF), arXiv 2402.04792; TRL's Online DPO.
    """
    second = (scores[:, 0] < scores[:, 1]).long()
    return torch.stack([second, 1 - second], 1)


def margin_pairs(scores: Tensor, threshold: float) -> list[list[tuple[int, int]]]:
    """Return, for each prompt, every pair (i, j) with r_i - r_j above `threshold`, ordered by i, then j.

    Reference: Rosset et al. 2024 (DNO), arXiv 2404.03715, algorithm 2.
    """
    wide = scores[:, :, None] - scores[:, None, :] > threshold
    return [[(i, j) for i, j in one.nonzero().tolist()] for one in wide]
