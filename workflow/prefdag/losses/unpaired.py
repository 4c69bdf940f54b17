"""Single responses with a label, desirable or not, against a reference: K = 1."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.models.logprobs import LogProbs


def kto(
    policy: LogProbs,
    reference: LogProbs,
    *,
    labels: Tensor,
    mismatched: Tensor,
    beta: float,
    lambda_d: float,
    lambda_u: float,
) -> Tensor:
    """Ethayarajh et al. 2024, eq. 7: lambda_d (1 - s(beta (d - z))) if desirable, else lambda_u (1 - s(beta (z - d))).

    z = max(0, the step's mean of `mismatched`), an estimate of KL(policy || reference) without gradient.
    """
    distance = (policy - reference).total[:, 0] - mismatched.mean().clamp(min=0)
    signed = torch.where(labels, distance, -distance)
    loss = torch.sigmoid(-beta * signed)
    return torch.where(labels, lambda_d * loss, lambda_u * loss)


def bco(
    policy: LogProbs, reference: LogProbs, *, labels: Tensor, state: dict[str, float], beta: float
) -> tuple[Tensor, dict[str, float]]:
    """Jung et al. 2024: -log s(beta d - delta) if desirable, else -log s(delta - beta d).

    delta is the mean of beta d over every example seen so far, these included; state: that "mean" and their "count".
    """
    reward = beta * (policy - reference).total[:, 0]
    count = state.get("count", 0.0) + len(reward)
    before = state.get("mean", 0.0)
    delta = before + (reward.detach().mean().item() - before) * len(reward) / count
    values = -F.logsigmoid(torch.where(labels, reward - delta, delta - reward))
    return values, {"mean": delta, "count": count}


def apo_zero_unpaired(policy: LogProbs, reference: LogProbs, *, labels: Tensor, beta: float) -> Tensor:
    """D'Oosterlinck et al. 2024, eq. 7 by halves: 1 - s(beta d) if desirable, else s(beta d)."""
    reward = beta * (policy - reference).total[:, 0]
    return torch.sigmoid(torch.where(labels, -reward, reward))
