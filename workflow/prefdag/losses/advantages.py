"""Rewards of tokens, returns and advantages of sampled responses. None of them has a gradient.

Tokens are padded tensors [B, L] of B responses, with `mask` 1 where a token counts (the end of turn among them) and 0
behind it; groups are [N, G], G sampled responses to each of N prompts. A result is 0 where the mask is.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ScoreAt = Literal["eos", "after_eos"]


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, coefficient: float, score_at: ScoreAt = "eos") -> Tensor:
    """Return the reward of each token: r_t = -beta kl_t, and the response's score on its last token.

    Args:
        scores: One score per response [B].
        kl: An estimate of the KL to the reference at every token [B, L], e.g. `kl_k1`.
        mask: Counted tokens [B, L].
        coefficient: beta; 0 leaves the score alone.
        score_at: "eos", the last counted token; or "after_eos", one position behind it where the row has one (TRL,
            Huang et al. 2024), whose value the critic then learns, too: see `value_mask`.

    Reference: Ziegler et al. 2019, eq. 2, arXiv 1909.08593; per token: Stiennon et al. 2020, appendix C.
    """
    rewards = torch.where(mask > 0, -coefficient * kl, 0.0)
    last = value_mask(mask, score_at).sum(1).long() - 1
    placed = torch.zeros_like(rewards).scatter(1, last.clamp(min=0)[:, None], scores[:, None].to(rewards.dtype))
    return rewards + placed * (last >= 0)[:, None]


def value_mask(mask: Tensor, score_at: ScoreAt = "eos") -> Tensor:
    """Return the positions [B, L] whose values are learned: `mask`, and with "after_eos" one position more."""
    if score_at == "eos":
        return mask
    return torch.maximum(mask, F.pad(mask[:, :-1], (1, 0)))


def missing_eos(scores: Tensor, ended: Tensor, *, how: Literal["subtract", "replace"], value: float) -> Tensor:
    """Penalise responses [B] without end of turn: subtract `value` from the score (TRL), or replace it (N+).

    Reference: Huang et al. 2024, "The N+ implementation details of RLHF with PPO", arXiv 2403.17031.
    """
    return torch.where(ended, scores, scores - value if how == "subtract" else torch.full_like(scores, value))


def rewards_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Return R_t = sum_{k >= t} gamma^(k - t) r_k: [B, L].

    Reference: Williams 1992; Sutton and Barto 2018, eq. 3.8.
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[0]


def subtract_baseline(returns: Tensor, baseline: Tensor, mask: Tensor) -> Tensor:
    """Return R_t - b of a baseline per response [B] or per token [B, L].

    Unbiased for every baseline that does not depend on the response's own later tokens: a constant, a learned value,
    or the score of the greedy response (ReMax, Li et al. 2023, arXiv 2310.10505).
    """
    return (returns - (baseline[:, None] if baseline.ndim == 1 else baseline)) * mask


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return generalised advantages and the returns A + V that the critic learns, before any whitening: [B, L] each.

    A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t. Masked positions are skipped.

    Args:
        rewards: [B, L].
        values: V_t before token t is sampled [B, L].
        mask: Counted tokens; `value_mask` where the score is behind the end of turn.
        gamma: Discount.
        lam: 0 trusts the critic alone, 1 the rewards alone (then any V leaves the gradient unbiased).
        bootstrap: V behind the last token [B] of a response that was cut; 0 by default.

    Reference: Schulman et al. 2015, eq. 16, arXiv 1506.02438.
    """
    following = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap
    advantage = torch.zeros_like(following)
    advantages = []
    for step in reversed(range(values.shape[1])):
        counted = mask[:, step] > 0
        delta = rewards[:, step] + gamma * following - values[:, step]
        advantage = torch.where(counted, delta + gamma * lam * advantage, advantage)
        following = torch.where(counted, values[:, step], following)
        advantages.append(torch.where(counted, advantage, 0.0))
    result = torch.stack(advantages[::-1], 1)
    return result, torch.where(mask > 0, result + values, 0.0)


def leave_one_out(scores: Tensor) -> Tensor:
    """Return A_i = r_i - mean_{j != i} r_j of each group [N, G] (RLOO); 0 in a group of one.

    Reference: Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740.
    """
    size = scores.shape[1]
    return group_mean(scores) * (size / max(size - 1, 1))


def group_mean(scores: Tensor) -> Tensor:
    """Return A_i = r_i - mean_j r_j of each group [N, G] (Dr. GRPO), which is (G - 1) / G of `leave_one_out`.

    Reference: Liu et al. 2025, arXiv 2503.20783.
    """
    return scores - scores.mean(1, keepdim=True)


def group_normalised(
    scores: Tensor, *, eps: float = 1e-4, ddof: int = 1, scale: Literal["group", "batch"] = "group"
) -> Tensor:
    """Return A_i = (r_i - mean_j r_j) / (std + eps) of each group [N, G] (GRPO); 0 in a group of one.

    Args:
        scores: [N, G].
        eps: Added to the deviation. TRL 1e-4, verl 1e-6: it decides what rounding in equal scores becomes.
        ddof: 1 divides the sum of squares by G - 1, 0 by G.
        scale: The deviation of each "group", or of all scores of the "batch" (the mean is the group's in both).

    Reference: Shao et al. 2024, section 4.1, arXiv 2402.03300.
    """
    spread = scores.std(1, correction=ddof, keepdim=True) if scale == "group" else scores.std(correction=ddof)
    return group_mean(scores) / (spread.nan_to_num(0.0) + eps)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, ddof: int = 1, eps: float = 1e-8) -> Tensor:
    """Scale counted values [B, L] to variance 1, and shift their mean to 0 unless `shift_mean` is false.

    Around an optimum, where advantages vanish, it amplifies rounding by 1 / sqrt(eps).

    Reference: Ziegler et al. 2019 (code, ddof 0); TRL and verl (ddof 1).
    """
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean) ** 2 * mask).sum() / (count - ddof).clamp(min=1)
    result = (values - mean) * torch.rsqrt(variance + eps)
    return (result if shift_mean else result + mean) * mask
