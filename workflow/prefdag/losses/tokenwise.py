"""Pairs against a reference: losses of the tokens one by one, or of the distributions they were drawn from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.losses.functional import logistic
from prefdag.models.logprobs import LogProbs, margin


def ld_dpo(policy: LogProbs, reference: LogProbs, *, beta: float, alpha: float) -> Tensor:
    """Liu et al. 2024 (LD-DPO): DPO in which tokens beyond the shorter response's length count alpha.

    Policy and reference alike.
    """
    ratio = policy - reference
    shared = ratio.count.min(dim=1).values[ratio.owner // 2]
    weighed = torch.where(ratio.position < shared, ratio.tokens, alpha * ratio.tokens)
    return -F.logsigmoid(beta * margin(ratio.summed(weighed)))


def wpo(policy: LogProbs, reference: LogProbs, *, collision: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Zhou et al. 2024, eq. 2: cDPO weighted by how likely the policy is to have written the pair,

    min(1, exp(mean_w + mean_l)), detached, of the means over tokens of log p_t - log sum_v p_v^2.
    """
    aligned = policy.summed(policy.tokens.detach() - collision) / policy.count
    weight = aligned.sum(1).clamp(max=0).exp()
    return weight * logistic(beta * margin((policy - reference).total), label_smoothing)


def tdpo1(policy: LogProbs, reference: LogProbs, *, divergence: Tensor, beta: float) -> Tensor:
    """Zeng et al. 2024: -log s(beta (D - (K_l - K_w))), K a response's summed KL(reference || policy)."""
    ratio = policy - reference
    return -F.logsigmoid(beta * (margin(ratio.total) + margin(policy.summed(divergence))))


def tdpo2(policy: LogProbs, reference: LogProbs, *, divergence: Tensor, beta: float, alpha: float) -> Tensor:
    """Zeng et al. 2024: -log s(beta (D - alpha (K_l - K_w))), no gradient through K_w."""
    ratio, kl = policy - reference, policy.summed(divergence)
    return -F.logsigmoid(beta * (margin(ratio.total) - alpha * (kl[:, 1] - kl[:, 0].detach())))
