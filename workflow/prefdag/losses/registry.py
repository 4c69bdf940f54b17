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
from prefdag.config.objectives.own import UserLoss
from prefdag.losses import batchwise, listwise, pairwise, pointwise, reference_free, tokenwise, unpaired
from prefdag.losses.user import load_user_loss

LOSSES: dict[str, Callable[..., Any]] = {
    loss.__name__: loss
    for loss in (
        *(
            pairwise.dpo,
            pairwise.cdpo,
            pairwise.robust,
            pairwise.dpo_norm,
            pairwise.ipo,
            pairwise.hinge,
            pairwise.odpo,
            pairwise.rebel,
        ),
        *(pairwise.exo_pair, pairwise.discopop, pairwise.f_dpo, pairwise.log_ratio),
        *(
            pointwise.caldpo,
            pointwise.sppo_hard,
            pointwise.dpop,
            pointwise.rpo,
            pointwise.nca_pair,
            pointwise.biased_nca,
        ),
        *(pointwise.apo_zero, pointwise.apo_down),
        *(batchwise.aot, batchwise.aot_unpaired, batchwise.beta_dpo),
        *(tokenwise.ld_dpo, tokenwise.wpo, tokenwise.tdpo1, tokenwise.tdpo2),
        *(
            reference_free.simpo,
            reference_free.alphapo,
            reference_free.orpo,
            reference_free.cpo,
            reference_free.slic,
            reference_free.preferred_ft,
            reference_free.unlikelihood,
        ),
        *(reference_free.unlikelihood_tokens, reference_free.cpl, reference_free.cpl_ref),
        *(unpaired.kto, unpaired.bco, unpaired.apo_zero_unpaired),
        *(listwise.plackett_luce, listwise.multi_negative, listwise.all_pairs, listwise.infonca_k, listwise.nca_k),
    )
}


def loss_of(objective: Objective) -> Callable[..., Any]:
    """The loss of a registry entry with its options bound, called as compute(policy, **what the entry reads)."""
    if isinstance(objective, UserLoss):
        return load_user_loss(objective)
    return partial(LOSSES[objective.method], **objective.parameters())
