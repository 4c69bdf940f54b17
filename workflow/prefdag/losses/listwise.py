"""K >= 2 responses, best first or scored, against a reference. At K = 2 the first three are DPO."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prefdag.losses import reward_model
from prefdag.losses.decorator import loss
from prefdag.models.logprobs import LogProbs
from prefdag.schema import Positive


@loss(
    title="Plackett-Luce",
    paper="Rafailov et al. 2023, arXiv 2305.18290, appendix A.3",
    formula="sum over k < K of log sum_{j >= k} exp(beta d_j) - beta d_k",
    responses="many",
)
def plackett_luce(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """DPO of a full ranking; of two responses it is DPO."""
    return reward_model.plackett_luce(beta * (policy - reference).total)


@loss(
    title="S-DPO",
    paper="Chen et al. 2024, S-DPO, arXiv 2406.09215",
    formula="-log softmax(beta d) of the first response",
    responses="many",
)
def multi_negative(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """Softmax DPO: one chosen response, several negatives."""
    return -F.log_softmax(beta * (policy - reference).total, dim=1)[:, 0]


@loss(
    title="DPO (all pairs)",
    paper="Ouyang et al. 2022, arXiv 2203.02155, eq. 1, with DPO's reward",
    formula="mean over i < j of -log s(beta (d_i - d_j))",
    first_step="log(2)",
    responses="many",
)
def all_pairs(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """DPO averaged over every pair of a ranking."""
    reward = beta * (policy - reference).total
    size = reward.shape[1]
    better, worse = torch.triu_indices(size, size, offset=1, device=reward.device)
    return -F.logsigmoid(reward[:, better] - reward[:, worse]).mean(1)


@loss(
    title="InfoNCA",
    paper="Chen et al. 2024, arXiv 2402.05369",
    formula="-sum_i softmax(r/alpha)_i log softmax(beta d)_i",
    responses="many",
    conventions="The authors' code raises the first response's score by 0.01: `first_bonus`.",
)
def infonca_k(
    policy: LogProbs,
    reference: LogProbs,
    *,
    scores: Tensor,
    beta: Positive = 0.01,
    alpha: Positive = 1.0,
    first_bonus: Annotated[float, Field(ge=0, description="added to the first response's score")] = 0.01,
) -> Tensor:
    """Cross-entropy of the policy's softmax against the scores' softmax."""
    reward = beta * (policy - reference).total
    return -(_soft_labels(scores, alpha, first_bonus) * F.log_softmax(reward, dim=1)).sum(1)


@loss(
    title="NCA",
    paper="Chen et al. 2024, arXiv 2402.05369",
    formula="-sum_i softmax(r/alpha)_i log s(beta d_i) - sum_i log s(-beta d_i) / K",
    first_step="2 * log(2)",
    responses="many",
    conventions="The authors' code raises the first response's score by 0.01: `first_bonus`.",
)
def nca_k(
    policy: LogProbs,
    reference: LogProbs,
    *,
    scores: Tensor,
    beta: Positive = 0.01,
    alpha: Positive = 1.0,
    first_bonus: Annotated[float, Field(ge=0, description="added to the first response's score")] = 0.01,
) -> Tensor:
    """Noise contrastive alignment of K scored responses."""
    reward = beta * (policy - reference).total
    labels = _soft_labels(scores, alpha, first_bonus)
    return -(labels * F.logsigmoid(reward)).sum(1) - F.logsigmoid(-reward).mean(1)


def _soft_labels(scores: Tensor, alpha: float, first_bonus: float) -> Tensor:
    """Return softmax(r / alpha) with `first_bonus` added to the first response's score: [B, K]."""
    first = torch.arange(scores.shape[1], device=scores.device) == 0
    return F.softmax(torch.where(first, scores + first_bonus, scores) / alpha, dim=1)
