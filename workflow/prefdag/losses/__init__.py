"""Preference losses: each a pure function of log-probs, its equation on the line.

S is a summed log-prob, A = S / n its average over the n tokens, d = S - R the log-ratio to the reference, D = d_w - d_l
the chosen's minus the rejected's, s the sigmoid. A function takes the policy's `LogProbs` of shape (B, K), best first,
and returns one value per comparison, [B], whose mean over an optimizer step is the step's loss. By keyword it takes its
options and what its entry's `reads` names:

reference     LogProbs of the reference, same tokens
scores        [B, K] a score of every response
labels        [B] whether the one response is desirable
mismatched    [B] log-ratio in nats of another prompt's response after this prompt, detached (KTO)
collision     [T] log sum_v p_v^2 at every response token, detached (WPO)
divergence    [T] KL(reference || policy) over the vocabulary at every response token, with gradient (TDPO)
noise         [B] uniform numbers in (0, 1) of the step's own stream (beta-DPO)
state         numbers carried from step to step; {} at the first. Such a loss returns (values, next state), and leaves
              the state it was given as it was

The registry with papers, options and defaults is `prefdag.config.objectives`; a function has the name of its entry
there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from prefdag.config.objectives import Objective
from prefdag.config.objectives.own import Own
from prefdag.losses import absolute, batch, free, pairs, rankings, singles, tokens
from prefdag.losses.own import own_loss

LOSSES: dict[str, Callable[..., Any]] = {
    loss.__name__: loss
    for loss in (
        *(pairs.dpo, pairs.cdpo, pairs.robust, pairs.dpo_norm, pairs.ipo, pairs.hinge, pairs.odpo, pairs.rebel),
        *(pairs.exo_pair, pairs.discopop, pairs.f_dpo, pairs.log_ratio),
        *(absolute.caldpo, absolute.sppo_hard, absolute.dpop, absolute.rpo, absolute.nca_pair, absolute.biased_nca),
        *(absolute.apo_zero, absolute.apo_down),
        *(batch.aot, batch.aot_unpaired, batch.beta_dpo),
        *(tokens.ld_dpo, tokens.wpo, tokens.tdpo1, tokens.tdpo2),
        *(free.simpo, free.alphapo, free.orpo, free.cpo, free.slic, free.preferred_ft, free.unlikelihood),
        *(free.unlikelihood_tokens, free.cpl, free.cpl_ref),
        *(singles.kto, singles.bco, singles.apo_zero_unpaired),
        *(rankings.plackett_luce, rankings.multi_negative, rankings.all_pairs, rankings.infonca_k, rankings.nca_k),
    )
}


def loss_of(objective: Objective) -> Callable[..., Any]:
    """The loss of a registry entry with its options bound, called as compute(policy, **what the entry reads)."""
    if isinstance(objective, Own):
        return own_loss(objective)
    return partial(LOSSES[objective.method], **objective.parameters())
