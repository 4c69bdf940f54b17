"""Losses whose terms only several pairs, or weights above 1, show; derived by hand."""

import math

import pytest
import torch

from prefdag.losses.batchwise import aot, aot_unpaired
from prefdag.losses.reference_free import cpl
from prefdag.losses.soft_labels import both_orders
from prefdag.losses.tokenwise import wpo
from prefdag.models.logprobs import LogProbs


def pairs(*values: float) -> LogProbs:
    """Pairs of responses of one token each, chosen first."""
    return LogProbs(torch.tensor(values).double(), torch.arange(len(values)), (len(values) // 2, 2))


def sp(x: float) -> float:
    """softplus, -log s(-x)."""
    return math.log(1 + math.exp(x))


def test_optimal_transport_compares_what_has_the_same_rank() -> None:
    """Gaps 3, -1, 2 of the policy and 0, 5, 1 of the reference: by rank, 3 meets 5, -1 meets 0 and 2 meets 1."""
    policy, reference = pairs(-1, -4, -3, -2, -2, -4), pairs(-1, -1, -1, -6, -2, -3)
    assert aot(policy, reference, beta=1.0).tolist() == pytest.approx([sp(2), sp(1), sp(-1)])


def test_unpaired_transport_compares_chosen_with_rejected_of_the_same_rank() -> None:
    """Chosen log-ratios 1, 3 and rejected 0, -2: 1 meets -2, and 3 meets 0."""
    zero = pairs(0, 0, 0, 0)
    assert aot_unpaired(pairs(1, 0, 3, -2), zero, beta=1.0).tolist() == pytest.approx([sp(-3), sp(-3)])


def test_a_pairs_weight_is_at_most_one() -> None:
    """Tokens of -0.5 where a sample has -2 on average: exp(1.5 + 1.5) is cut to 1."""
    policy, reference = pairs(-0.5, -0.5), pairs(-0.5, -1.5)
    likely = wpo(policy, reference, collision=torch.tensor([-2.0, -2.0]).double(), beta=1.0)
    assert likely.item() == pytest.approx(sp(1))
    unlikely = wpo(policy, reference, collision=torch.tensor([0.0, -0.25]).double(), beta=1.0)
    assert unlikely.item() == pytest.approx(math.exp(-0.75) * sp(1))


def test_a_turned_pair_has_its_tokens_in_order() -> None:
    """A loss that reads places of tokens: responses of 2 and 1 tokens, and the same the other way round."""
    tokens = torch.tensor([-1.0, -2.0, -3.0]).double()
    policy = LogProbs(tokens, torch.tensor([0, 0, 1]), (1, 2))
    turned = LogProbs(tokens[[2, 0, 1]], torch.tensor([0, 1, 1]), (1, 2))

    def loss(one: LogProbs, other: LogProbs) -> torch.Tensor:
        return cpl(one, alpha=1.0, bias=1.0, discount=0.5)

    value = both_orders(loss, policy, policy, torch.zeros(1))
    assert value.item() == pytest.approx(loss(turned, turned).item()) == pytest.approx(sp(1))
