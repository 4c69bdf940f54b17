"""Losses of reward models: each a pure function of rewards [..., K], best first, one value per comparison: [...].

r is a reward, n a response's number of tokens, s the sigmoid. With more than two responses a loss of pairs is the mean
over all K (K - 1) / 2 ordered pairs (Ouyang et al. 2022, eq. 1); with K = 2 that is the one pair.

They are not in `prefdag.losses.registry`, which imports every preference loss: an edit of DPO must not rerun a
reward model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(values: Tensor, *, margin: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Bradley and Terry 1952: -(1 - e) log s(z) - e log s(-z) of z = r_w - r_l - m.

    margin m [..., pairs], in the order of `gaps`: Touvron et al. 2023 (Llama 2), eq. 2. label_smoothing e: labels are
    wrong with this probability, Mitchell 2023, eq. 3.
    """
    assert margin is None or margin.ndim == values.ndim  # a [B] would be broadcast to [B, B]
    logit = gaps(values) if margin is None else gaps(values) - margin
    loss = -F.logsigmoid(logit)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-logit)
    return loss.mean(-1)


def plackett_luce(values: Tensor) -> Tensor:
    """Plackett 1975, Luce 1959: sum_{k<K} logsumexp_{j>=k} r_j - r_k, the ranking's negative log-likelihood.

    Written as -log s(r_k - logsumexp_{j>k} r_j), which is the same number and keeps its digits where it is small.
    """
    places = range(values.shape[-1] - 1)
    return sum(-F.logsigmoid(values[..., k] - values[..., k + 1 :].logsumexp(-1)) for k in places)  # type: ignore


def pair_sum(values: Tensor) -> Tensor:
    """Centring penalty of Eisenstein et al. 2023, eq. 2, and TRL: (r_w + r_l)^2, to be weighted (TRL: by 0.01)."""
    better, worse = paired(values)
    return ((better + worse) ** 2).mean(-1)


def each(values: Tensor) -> Tensor:
    """Centring penalty of align-anything: the mean of every response's r^2, to be weighted (there: by 0.001)."""
    return (values**2).mean(-1)


def explained_by_length(values: Tensor, lengths: Tensor, penalty: float) -> Tensor:
    """r + penalty * n: what a loss compares when the reward itself is to be free of length.

    Park et al. 2024 (R-DPO): policies are to maximise r - penalty * n, so the data's preference is fit by
    r + penalty * n and the logit of a pair is r_w - r_l + penalty * (n_w - n_l). Where the longer response wins, length
    has explained part of it and r has less to learn; the minus sign would make r prefer length more. lengths [..., K].
    """
    return values + penalty * lengths


def gaps(values: Tensor) -> Tensor:
    """Better minus worse of every ordered pair: [..., K] -> [..., K (K - 1) / 2]."""
    better, worse = paired(values)
    return better - worse


def paired(values: Tensor) -> tuple[Tensor, Tensor]:
    """The better and the worse of every pair: each [..., K (K - 1) / 2], (1, 2), (1, 3), ..., (K - 1, K)."""
    better, worse = torch.triu_indices(values.shape[-1], values.shape[-1], offset=1, device=values.device)
    return values[..., better], values[..., worse]
