"""Policy-gradient losses, KL estimators and diagnostics.

A loss is one value per token, of tensors of any one shape ([B, L] padded or [T] packed), so that `token_weights` alone
says how tokens are averaged: loss = sum of weight times value over all counted tokens of an optimizer step.
"""

from typing import Literal

import torch
from torch import Tensor

from prefdag.losses.functional import expm1

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]


def token_weights(counts: Tensor, how: Aggregation, *, max_length: int | None = None) -> Tensor:
    """Return the weight of every token of each response [B] in the loss of one optimizer step.

    - "token_mean": 1 / (all counted tokens); DAPO and BNPO, and PPO in most tools.
    - "sequence_mean": 1 / (B n), the mean over responses of token means; GRPO, which favours short good responses.
    - "sequence_sum": 1 / B, the mean over responses of token sums; REINFORCE's unbiased gradient.
    - "constant": 1 / (B max_length); Dr. GRPO.

    Args:
        counts: Counted tokens of each response of the whole step [B], over all processes and micro-batches.
        how: The aggregation.
        max_length: The longest response that sampling permits, for "constant".

    Reference: Shao et al. 2024; Liu et al. 2025; Yu et al. 2025 (DAPO), arXiv 2503.14476.
    """
    counts = counts.double() if counts.dtype == torch.long else counts
    ones = torch.ones_like(counts)
    if how == "token_mean":
        return ones / counts.sum().clamp(min=1)
    if how == "sequence_mean":
        return ones / (len(counts) * counts.clamp(min=1))
    if how == "constant":
        assert max_length, "aggregation: constant needs max_length"
        return ones / (len(counts) * max_length)
    return ones / len(counts)


def aggregate(values: Tensor, mask: Tensor, how: Aggregation, *, max_length: int | None = None) -> Tensor:
    """Return the loss of padded values [B, L]: `token_weights` times values, summed over counted tokens."""
    weights = token_weights(mask.sum(1), how, max_length=max_length)
    return (values * mask * weights[:, None]).sum()


def reinforce(logprob: Tensor, advantage: Tensor) -> Tensor:
    """Return -A log p.

    Reference: Williams 1992.
    """
    return -advantage * logprob


def ppo_policy(
    logprob: Tensor,
    old: Tensor,
    advantage: Tensor,
    *,
    clip_low: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """Return max(-A rho, -A clip(rho, 1 - low, 1 + high)) with rho = p / p_old.

    Per token for PPO and GRPO; of summed log-probs [B] it is RLOO's loss with one ratio for the whole response.

    Args:
        logprob: Log-probs under the policy.
        old: Log-probs under the policy that sampled.
        advantage: A, without gradient.
        clip_low: Clipping range below 1.
        clip_high: Clipping range above 1, `clip_low` by default (DAPO: higher).
        dual_clip: Where A < 0, the loss is at most -A times this (Ye et al. 2020, arXiv 1912.09729).

    Reference: Schulman et al. 2017, eq. 7, arXiv 1707.06347.
    """
    ratio = ratio_of(logprob, old)
    clipped = ratio.clamp(1 - clip_low, 1 + (clip_low if clip_high is None else clip_high))
    loss = torch.maximum(-advantage * ratio, -advantage * clipped)
    if dual_clip is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)


def clipped_tokens(
    logprob: Tensor, old: Tensor, advantage: Tensor, *, clip_low: float, clip_high: float | None = None
) -> Tensor:
    """Return 1 where the clipped term of `ppo_policy` is the larger one, so that the token has no gradient."""
    ratio = ratio_of(logprob, old)
    clipped = ratio.clamp(1 - clip_low, 1 + (clip_low if clip_high is None else clip_high))
    return (-advantage * clipped > -advantage * ratio).to(logprob.dtype)


def ppo_value(values: Tensor, old: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    """Return max((V - R)^2, (V clipped within c of V_old - R)^2) / 2; without a clip (V - R)^2 / 2.

    Reference: Ziegler et al. 2019 (code); Huang et al. 2024, arXiv 2403.17031.
    """
    errors = (values - returns) ** 2
    if clip is not None:
        errors = torch.maximum(errors, (clip_values(values, old, clip) - returns) ** 2)
    return errors / 2


def clip_values(values: Tensor, old: Tensor, clip: float) -> Tensor:
    return torch.minimum(torch.maximum(values, old - clip), old + clip)


def ratio_of(logprob: Tensor, old: Tensor) -> Tensor:
    """Return rho = p / p_old, exactly 1 where both log-probs are equal, and finite far away."""
    return 1 + expm1(logprob - old)


def kl_k1(logprob: Tensor, reference: Tensor) -> Tensor:
    """Return x = log p - log p_ref of sampled tokens, unbiased for KL(policy || reference).

    As a reward its gradient is right; as a loss its expected gradient is 0.

    Reference: Schulman 2020, "Approximating KL divergence".
    """
    return logprob - reference


def kl_k2(logprob: Tensor, reference: Tensor) -> Tensor:
    """Return x^2 / 2: a biased value whose expected gradient is that of KL(policy || reference).

    Reference: Schulman 2020.
    """
    return (logprob - reference) ** 2 / 2


def kl_k3(logprob: Tensor, reference: Tensor) -> Tensor:
    """Return exp(-x) - 1 + x: an unbiased value, whose expected gradient is that of KL(reference || policy).

    Reference: Schulman 2020; in the loss: Shao et al. 2024, eq. 4.
    """
    return expm1(reference - logprob) + logprob - reference


def kl_k3_straight_through(logprob: Tensor, reference: Tensor) -> Tensor:
    """Return the value of k3 with the gradient of k2 (verl's `k3+`)."""
    surrogate = kl_k2(logprob, reference)
    return surrogate + (kl_k3(logprob, reference) - surrogate).detach()


def importance_weighted(kl: Tensor, logprob: Tensor, old: Tensor) -> Tensor:
    """Return rho times an estimate, rho = p / p_old with gradient.

    With k3 the gradient is that of k2 at p = p_old (TRL's `use_bias_correction_kl`); with k1 the same.
    """
    return ratio_of(logprob, old) * kl


def kl_full(log_policy: Tensor, log_reference: Tensor) -> Tensor:
    """Return sum_v p_v (log p_v - log q_v) over the vocabulary: [..., V] -> [...].

    The exact KL of one token's distribution; very large tensors: B x L x V.
    """
    policy = log_policy.exp()
    return torch.where(policy > 0, policy * (log_policy - log_reference), 0.0).sum(-1)


def entropy(log_policy: Tensor) -> Tensor:
    """Return -sum_v p_v log p_v of log-probs [..., V]: [...], in nats."""
    policy = log_policy.exp()
    return -torch.where(policy > 0, policy * log_policy, 0.0).sum(-1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Return 1 - mean((R - V)^2) / var(R) over counted tokens: 1 for a perfect critic, 0 for their mean."""
    counted = mask > 0
    return 1 - ((returns - values)[counted] ** 2).mean() / returns[counted].var(correction=0)


def adapted_coefficient(coefficient: float, kl: float, *, target: float, horizon: float, batch_size: int) -> float:
    """Return the next KL coefficient: beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon).

    Args:
        coefficient: beta of the round.
        kl: Mean KL of the round's responses to the reference, in nats per response.
        target: KL to reach, in nats per response.
        horizon: Responses after which an error of 20% has changed beta by about 20%.
        batch_size: n, responses of the round.

    Reference: Ziegler et al. 2019, section 2.2.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * batch_size / horizon)
