"""Losses of reward models, of rewards [B, K], best first; each [B], to be averaged over a step."""

import torch
from torch import Tensor

from prefdag.losses.terms import logistic


def bradley_terry(values: Tensor, margin: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Bradley and Terry 1952: -log s(r_w - r_l - margin) of rewards [B, 2]; a margin [B] by rating is Llama 2's."""
    gap = values[:, 0] - values[:, 1]
    return logistic(gap if margin is None else gap - margin, label_smoothing)


def plackett_luce(values: Tensor) -> Tensor:
    """Plackett 1975, Luce 1959: sum over k < K of log sum_{j >= k} exp(r_j) - r_k of rewards [B, K], best first."""
    size = values.shape[1]
    later = torch.ones(size, size, dtype=torch.bool, device=values.device).triu()
    rest = values[:, None, :].masked_fill(~later, -torch.inf).logsumexp(-1)
    return (rest - values)[:, :-1].sum(1)


def centring(values: Tensor) -> Tensor:
    """Eisenstein et al. 2023: (r_w + r_l)^2, which keeps rewards around 0."""
    return values.sum(1) ** 2


def squares(values: Tensor) -> Tensor:
    """Mean square of a comparison's rewards."""
    return (values**2).mean(1)
