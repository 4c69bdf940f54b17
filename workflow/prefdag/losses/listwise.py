"""K >= 2 responses, best first or scored, against a reference. At K = 2 the first three are DPO."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.losses import reward_model
from prefdag.models.logprobs import LogProbs


def plackett_luce(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Rafailov et al. 2023, appendix A.3: sum over k < K of log sum_{j >= k} exp(beta d_j) - beta d_k."""
    return reward_model.plackett_luce(beta * (policy - reference).total)


def multi_negative(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Chen et al. 2024 (S-DPO): -log softmax(beta d) of the first response, the others being its negatives."""
    return -F.log_softmax(beta * (policy - reference).total, dim=1)[:, 0]


def all_pairs(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Ouyang et al. 2022, eq. 1, with DPO's reward: the mean of -log s(beta (d_i - d_j)) over i before j."""
    reward = beta * (policy - reference).total
    size = reward.shape[1]
    better, worse = torch.triu_indices(size, size, offset=1, device=reward.device)
    return -F.logsigmoid(reward[:, better] - reward[:, worse]).mean(1)


def infonca_k(
    policy: LogProbs, reference: LogProbs, *, scores: Tensor, beta: float, alpha: float, first_bonus: float
) -> Tensor:
    """Chen et al. 2024 (NCA): cross-entropy of softmax(beta d) against softmax(r / alpha)."""
    reward = beta * (policy - reference).total
    return -(_soft_labels(scores, alpha, first_bonus) * F.log_softmax(reward, dim=1)).sum(1)


def nca_k(
    policy: LogProbs, reference: LogProbs, *, scores: Tensor, beta: float, alpha: float, first_bonus: float
) -> Tensor:
    """Chen et al. 2024 (NCA): -sum_i softmax(r / alpha)_i log s(beta d_i) - sum_i log s(-beta d_i) / K."""
    reward = beta * (policy - reference).total
    labels = _soft_labels(scores, alpha, first_bonus)
    return -(labels * F.logsigmoid(reward)).sum(1) - F.logsigmoid(-reward).mean(1)


def _soft_labels(scores: Tensor, alpha: float, first_bonus: float) -> Tensor:
    """softmax(r / alpha), the first response's score raised by `first_bonus`: [B, K]."""
    first = torch.arange(scores.shape[1], device=scores.device) == 0
    return F.softmax(torch.where(first, scores + first_bonus, scores) / alpha, dim=1)
