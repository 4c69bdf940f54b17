"""Pair losses under soft labels: each pair counts in both orders."""

from collections.abc import Callable

import torch
from torch import Tensor

from prefdag.models.logprobs import LogProbs

PairLoss = Callable[[LogProbs, LogProbs], Tensor]  # of policy and reference, [B, 2] with the better response first


def both_orders(loss: PairLoss, policy: LogProbs, reference: LogProbs, labels: Tensor) -> Tensor:
    """Return p loss(first, second) + (1 - p) loss(second, first), the expected loss of a label sampled with p: [B].

    With DPO and p = s(r1 - r2) the gradient of every pair is 0 at pi_ref exp(r / beta) / Z, for any sampler.

    Args:
        loss: returns the losses of pairs whose better response is the first.
        policy, reference: log-probs of the pairs.
        labels: p, the probability that the first response is the better one, [B].
    """
    swapped = torch.argsort(policy.owner ^ 1, stable=True)  # a response's tokens stay in their order
    owner = (policy.owner ^ 1)[swapped]
    first = loss(policy, reference)
    second = loss(*(LogProbs(one.tokens[swapped], owner, one.shape) for one in (policy, reference)))
    labels = labels.to(first)
    return labels * first + (1 - labels) * second
