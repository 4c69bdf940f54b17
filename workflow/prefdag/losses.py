"""Preference losses: each a pure function of log-probs, its equation on the line.

D is the difference of the chosen and rejected summed log-ratios, A an average log-prob, s the sigmoid. Each function
takes `LogProbs` of shape (B, 2), chosen first, and returns one value per comparison: [B]. The registry with papers,
parameters and defaults is `prefdag.config.objectives`; a function has the name of its entry there.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from prefdag.config.objectives import Objective
from prefdag.logprobs import LogProbs, margin


def dpo(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Rafailov et al. 2023, eq. 7: -log s(beta D)."""
    return -F.logsigmoid(beta * margin((policy - reference).total))


def cdpo(policy: LogProbs, reference: LogProbs, *, beta: float, label_smoothing: float) -> Tensor:
    """Mitchell 2023, eq. 3: -(1 - e) log s(beta D) - e log s(-beta D)."""
    logit = beta * margin((policy - reference).total)
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)


def ipo(policy: LogProbs, reference: LogProbs, *, beta: float, logprob: str) -> Tensor:
    """Azar et al. 2023, eq. 17: (D - 1 / (2 beta))^2, of summed or of averaged log-ratios."""
    ratio = policy - reference
    return (margin(ratio.total if logprob == "summed" else ratio.mean) - 1 / (2 * beta)) ** 2


def simpo(policy: LogProbs, *, beta: float, gamma_beta_ratio: float) -> Tensor:
    """Meng et al. 2024, eq. 6: -log s(beta (A_w - A_l) - gamma), with gamma = beta * gamma_beta_ratio."""
    return -F.logsigmoid(beta * (margin(policy.mean) - gamma_beta_ratio))


def preferred_ft(policy: LogProbs) -> Tensor:
    """Rafailov et al. 2023, section 6: maximum likelihood on the chosen response, -S_w."""
    return -policy.total[:, 0]


def unlikelihood(policy: LogProbs, *, alpha: float) -> Tensor:
    """Rafailov et al. 2023, section 6: raise the chosen, lower the rejected log-prob, -S_w + alpha S_l."""
    return -policy.total[:, 0] + alpha * policy.total[:, 1]


LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss for loss in (dpo, cdpo, ipo, simpo, preferred_ft, unlikelihood)
}


def loss_of(objective: Objective) -> Callable[[LogProbs, LogProbs | None], Tensor]:
    """The loss of a registry entry with its parameters bound, called with (policy, reference or None)."""
    loss = partial(LOSSES[objective.method], **objective.parameters())
    if "reference" in objective.reads:
        return loss
    return lambda policy, reference: loss(policy)
