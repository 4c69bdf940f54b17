"""Policy optimization on rewards: clipped objectives, advantages and KL estimators, of padded tensors [B, L].

`mask` is 1 where a token counts.
"""

import torch
from torch import Tensor

from prefdag.losses.functional import expm1


def ppo_policy(logprob: Tensor, old: Tensor, advantage: Tensor, mask: Tensor, *, clip: float) -> Tensor:
    """Schulman et al. 2017, eq. 7: max(-A rho, -A clip(rho, 1 - c, 1 + c)) averaged over tokens, rho = p / p_old."""
    ratio = 1 + expm1(logprob - old)
    return _mean(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)), mask)


def ppo_value(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None) -> Tensor:
    """max((V - G)^2, (V clipped within c of V_old - G)^2) / 2 averaged over tokens; without a clip (V - G)^2 / 2."""
    errors = (values - returns) ** 2
    if clip is not None:
        clipped = torch.minimum(torch.maximum(values, old - clip), old + clip)
        errors = torch.maximum(errors, (clipped - returns) ** 2)
    return _mean(errors, mask) / 2


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Schulman et al. 2015, eq. 16: A_t = r_t + gamma V_t+1 - V_t + gamma lam A_t+1, with masked values 0: [B, L]."""
    rewards, values = rewards * mask, values * mask
    advantage = following = torch.zeros_like(values[:, 0])
    advantages = []
    for step in reversed(range(values.shape[1])):
        advantage = rewards[:, step] + gamma * following - values[:, step] + gamma * lam * advantage
        following = values[:, step]
        advantages.append(advantage)
    return torch.stack(advantages[::-1], 1)


def kl_k1(logprob: Tensor, reference: Tensor) -> Tensor:
    """Schulman 2020: x = log p - log p_ref of tokens sampled from the policy; unbiased for KL(policy || reference)."""
    return logprob - reference


def kl_k2(logprob: Tensor, reference: Tensor) -> Tensor:
    """Schulman 2020: x^2 / 2, biased and never negative."""
    return (logprob - reference) ** 2 / 2


def kl_k3(logprob: Tensor, reference: Tensor) -> Tensor:
    """Schulman 2020: exp(-x) - 1 + x, unbiased and never negative."""
    return expm1(reference - logprob) + logprob - reference


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum()
