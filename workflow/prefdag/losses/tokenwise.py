"""Pairs against a reference: losses of single tokens, or of the distributions that they were sampled from."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prefdag.losses.decorator import loss
from prefdag.losses.functional import logistic
from prefdag.models.logprobs import LogProbs, margin
from prefdag.schema import LabelSmoothing, NonNegative, Positive


@loss(
    title="LD-DPO",
    paper="Liu et al. 2024, arXiv 2409.06411",
    formula="-log s(beta D), D of S = sum of the first min(n_w, n_l) tokens + alpha times the rest",
    first_step="log(2)",
    conventions="LLaMA-Factory and older TRL weigh the policy alone; here, as in TRL 1, the reference too.",
)
def ld_dpo(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 0.1,
    alpha: Annotated[float, Field(ge=0, le=1, description="weight of a token beyond the shared length; 1 is DPO")],
) -> Tensor:
    """Length-desensitised DPO: tokens beyond the shorter response's length count less."""
    ratio = policy - reference
    shared = ratio.count.min(dim=1).values[ratio.owner // 2]
    weighed = torch.where(ratio.position < shared, ratio.tokens, alpha * ratio.tokens)
    return -F.logsigmoid(beta * margin(ratio.summed(weighed)))


@loss(
    title="WPO",
    paper="Zhou et al. 2024, arXiv 2406.11827, eq. 2",
    formula="w cdpo(beta D), w = min(1, exp(mean_w + mean_l)), means over tokens of log p_t - log sum_v p_v^2",
    conventions="TRL leaves out min(1, .); open-instruct weighs by sums.",
)
def wpo(
    policy: LogProbs,
    reference: LogProbs,
    *,
    collision: Tensor,
    beta: Positive = 0.01,
    label_smoothing: LabelSmoothing = 0.0,
) -> Tensor:
    """Weighted preference optimization: cDPO, weighted by how likely the policy is to have written the pair.

    The weight w is detached.
    """
    aligned = policy.summed(policy.tokens.detach() - collision) / policy.count
    weight = aligned.sum(1).clamp(max=0).exp()
    return weight * logistic(beta * margin((policy - reference).total), label_smoothing)


@loss(
    title="TDPO1",
    paper="Zeng et al. 2024, arXiv 2404.11999",
    formula="-log s(beta (D - (K_l - K_w))), K = sum_t KL(reference_t || policy_t)",
    first_step="log(2)",
)
def tdpo1(policy: LogProbs, reference: LogProbs, *, divergence: Tensor, beta: Positive = 0.1) -> Tensor:
    """Token-level DPO: sequential KL in the margin."""
    ratio = policy - reference
    return -F.logsigmoid(beta * (margin(ratio.total) + margin(policy.summed(divergence))))


@loss(
    title="TDPO2",
    paper="Zeng et al. 2024, arXiv 2404.11999",
    formula="-log s(beta (D - alpha (K_l - sg K_w))), K = sum_t KL(reference_t || policy_t)",
    first_step="log(2)",
)
def tdpo2(
    policy: LogProbs, reference: LogProbs, *, divergence: Tensor, beta: Positive = 0.1, alpha: NonNegative = 0.5
) -> Tensor:
    """Token-level DPO, the chosen response's KL without gradient."""
    ratio, kl = policy - reference, policy.summed(divergence)
    return -F.logsigmoid(beta * (margin(ratio.total) - alpha * (kl[:, 1] - kl[:, 0].detach())))
