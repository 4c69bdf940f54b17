"""Preference losses: each a pure function of log-probs, its equation on the line.

D is the difference of the chosen and rejected summed log-ratios, A an average log-prob, s the sigmoid. Each function
takes `LogProbs` of shape (B, 2), chosen first, and returns one value per comparison: [B]. The registry with papers,
parameters and defaults is `prefdag.config.objectives`; a function has the name of its entry there.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from prefdag.config.objectives import Objective
from prefdag.config.objectives.own import Own
from prefdag.logprobs import LogProbs
from prefdag.losses.free import preferred_ft, simpo, unlikelihood
from prefdag.losses.own import own_loss
from prefdag.losses.pairs import cdpo, dpo, ipo

LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss for loss in (dpo, cdpo, ipo, simpo, preferred_ft, unlikelihood)
}


def loss_of(objective: Objective) -> Callable[[LogProbs, LogProbs | None], Tensor]:
    """The loss of a registry entry with its parameters bound, called with (policy, reference or None)."""
    if isinstance(objective, Own):
        return own_loss(objective)
    loss = partial(LOSSES[objective.method], **objective.parameters())
    if "reference" in objective.reads:
        return loss
    return lambda policy, reference: loss(policy)
