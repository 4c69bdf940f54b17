"""Single responses with a label, desirable or not, against a reference: K = 1."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.losses.decorator import loss
from prefdag.models.logprobs import LogProbs
from prefdag.schema import NonNegative, Positive


@loss(
    title="KTO",
    paper="Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7",
    formula="lambda_d (1 - s(beta (d - z))) or lambda_u (1 - s(beta (z - d))), z = max(0, mean mismatched log-ratio)",
    responses="one",
    scope="step",
    conventions="z is of the whole step. Some paired variants give the chosen the rejected's KL.",
)
def kto(
    policy: LogProbs,
    reference: LogProbs,
    *,
    labels: Tensor,
    mismatched: Tensor,
    beta: Positive = 0.1,
    lambda_d: NonNegative = 1.0,
    lambda_u: NonNegative = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimization: utility against a reference point, the policy's KL to the reference.

    z = max(0, the step's mean of `mismatched`), an estimate of KL(policy || reference) without gradient.
    """
    distance = (policy - reference).total[:, 0] - mismatched.mean().clamp(min=0)
    signed = torch.where(labels, distance, -distance)
    values = torch.sigmoid(-beta * signed)
    return torch.where(labels, lambda_d * values, lambda_u * values)


@loss(
    title="BCO",
    paper="Jung et al. 2024, arXiv 2404.04656",
    formula="-log s(beta d - delta) or -log s(delta - beta d), delta the mean of all beta d so far",
    first_step="log(2)",
    responses="one",
    scope="step",
    conventions="delta counts every example once; TRL's bco_pair counted batches, and TRL 1's has no delta.",
)
def bco(
    policy: LogProbs, reference: LogProbs, *, labels: Tensor, state: dict[str, float], beta: Positive = 0.1
) -> tuple[Tensor, dict[str, float]]:
    """Binary classifier optimization: rewards against their running mean.

    delta includes the current examples; the state holds this "mean" and the "count" of examples.
    """
    reward = beta * (policy - reference).total[:, 0]
    count = state.get("count", 0.0) + len(reward)
    before = state.get("mean", 0.0)
    delta = before + (reward.detach().mean().item() - before) * len(reward) / count
    values = -F.logsigmoid(torch.where(labels, reward - delta, delta - reward))
    return values, {"mean": delta, "count": count}


@loss(
    title="APO-zero (unpaired)",
    paper="D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7",
    formula="1 - s(beta d) or s(beta d)",
    first_step="1 / 2",
    responses="one",
)
def apo_zero_unpaired(policy: LogProbs, reference: LogProbs, *, labels: Tensor, beta: Positive = 0.1) -> Tensor:
    """Anchored preference optimization by halves: desirable up, undesirable down."""
    reward = beta * (policy - reference).total[:, 0]
    return torch.sigmoid(torch.where(labels, -reward, reward))
