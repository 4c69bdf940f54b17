"""Both orders of a pair, weighted by the probability of its label."""

import torch

from prefdag.config.objectives import objective
from prefdag.losses.registry import loss_of
from prefdag.losses.soft_labels import both_orders
from prefdag.models.logprobs import LogProbs

BETA = 0.7
REFERENCE = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
REWARD = torch.tensor([0.0, 1.0, -0.5, 1.6], dtype=torch.float64)
PAIRS = torch.combinations(torch.arange(4))  # of responses, [6, 2]


def pairs_of(logprobs: torch.Tensor) -> LogProbs:
    """Return the pairs as responses of one token each."""
    return LogProbs(logprobs[PAIRS].flatten(), torch.arange(PAIRS.numel()), (len(PAIRS), 2))


def gradients(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the gradient of each pair's DPO loss in the logits: [6, 4]."""
    dpo = loss_of(objective({"method": "dpo", "beta": BETA}, "test", "dpo"))

    def losses(at: torch.Tensor) -> torch.Tensor:
        loss = lambda policy, reference: dpo(policy, reference=reference)  # noqa: E731
        return both_orders(loss, pairs_of(at.log_softmax(0)), pairs_of(REFERENCE.log()), labels)

    return torch.autograd.functional.jacobian(losses, logits)


def test_no_pair_has_a_gradient_at_the_optimum() -> None:
    """At pi_ref exp(r / beta) / Z, for any sampler; with hard labels every pair has one."""
    optimum = REFERENCE.log() + REWARD / BETA
    gap = REWARD[PAIRS[:, 0]] - REWARD[PAIRS[:, 1]]
    assert gradients(gap.sigmoid(), optimum).abs().max() < 1e-15
    assert gradients((gap > 0).double(), optimum).abs().amax(1).min() > 1e-3
    assert gradients(gap.sigmoid(), REFERENCE.log()).abs().amax(1).min() > 1e-2


def test_a_pair_of_several_tokens_is_turned_round() -> None:
    tokens, lengths = torch.arange(1.0, 8).double().sin(), torch.tensor([1, 2, 3, 1])
    owner = torch.arange(4).repeat_interleave(lengths)
    policy, reference = (LogProbs(values, owner, (2, 2)) for values in (tokens, tokens.cos()))
    order = torch.tensor([1, 2, 0, 6, 3, 4, 5])
    other = [LogProbs(one.tokens[order], torch.tensor([0, 0, 1, 2, 3, 3, 3]), (2, 2)) for one in (policy, reference)]
    loss = loss_of(objective({"method": "dpo", "beta": BETA}, "test", "dpo"))
    labels = torch.tensor([0.3, 0.9], dtype=torch.float64)
    expected = labels * loss(policy, reference=reference) + (1 - labels) * loss(other[0], reference=other[1])
    both = both_orders(lambda one, two: loss(one, reference=two), policy, reference, labels)
    assert torch.equal(both, expected)
