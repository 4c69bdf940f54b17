"""Preference losses: each a pure function of log-probs, with its equation in the decorator.

S is a summed log-prob, A = S / n its average over the n tokens, d = S - R the log-ratio to the reference, D = d_w - d_l
the chosen's minus the rejected's, s the sigmoid. A function takes the policy's `LogProbs` of shape (B, K), best first,
and returns one value per comparison, [B], whose mean over an optimizer step is the step's loss. By keyword it takes its
options and the inputs that its signature names:

reference     LogProbs of the reference, same tokens
scores        [B, K] a score of every response
labels        [B] whether the one response is desirable
mismatched    [B] log-ratio in nats of another prompt's response after this prompt, detached (KTO)
collision     [T] log sum_v p_v^2 at every response token, detached (WPO)
divergence    [T] KL(reference || policy) over the vocabulary at every response token, with gradient (TDPO)
noise         [B] uniform numbers in (0, 1) of the step's own stream (beta-DPO)
state         numbers carried from step to step; {} at the first. Such a loss returns (values, next state), and does not
              change the state that it receives
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from prefdag.config.objectives import FAMILIES, OBJECTIVES, Objective, UserLoss
from prefdag.losses import batchwise, listwise, pairwise, pointwise, reference_free, tokenwise, unpaired
from prefdag.losses.user import load_user_loss

# Imported by name, so that the losses are among the sources of every stage that imports this module.
MODULES = (pairwise, pointwise, batchwise, tokenwise, reference_free, unpaired, listwise)
_BY_FAMILY = {FAMILIES[module.__name__.rpartition(".")[2]]: module for module in MODULES}
LOSSES: dict[str, Callable[..., Any]] = {
    method: getattr(_BY_FAMILY[entry.family], method) for method, entry in OBJECTIVES.items()
}


def loss_of(objective: Objective) -> Callable[..., Any]:
    """Return a row's loss with its options bound, to be called as `compute(policy, **inputs)`."""
    if isinstance(objective, UserLoss):
        return load_user_loss(objective)
    return partial(LOSSES[objective.method], **objective.parameters())
