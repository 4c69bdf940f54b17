"""Losses of reward models: arithmetic that a reader can redo, and identities; peers' cases are in test_oracles."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prefdag.config.sections.reward import Reward
from prefdag.losses.reward_model import bradley_terry, each, explained_by_length, gaps, pair_sum, plackett_luce
from prefdag.stages.reward import reward_loss


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def some(num: int, num_responses: int) -> Tensor:
    return torch.randn(num, num_responses, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_bradley_terry_by_hand() -> None:
    """Rewards 2 and 0.5: -log s(1.5) = log(1 + e^-1.5) = 0.201413."""
    assert bradley_terry(tensor(2, 0.5)).item() == pytest.approx(0.201413, abs=1e-6)


def test_a_margin_is_taken_off_the_gap() -> None:
    """The same with a margin of 1: -log s(0.5) = 0.474077."""
    assert bradley_terry(tensor(2, 0.5), margin=tensor(1)).item() == pytest.approx(0.474077, abs=1e-6)


def test_label_smoothing_by_hand() -> None:
    """e 0.2: 0.8 * 0.201413 + 0.2 * (0.201413 + 1.5) = 0.501413; of the gap less the margin 1, 0.574077."""
    assert bradley_terry(tensor(2, 0.5), label_smoothing=0.2).item() == pytest.approx(0.501413, abs=1e-6)
    result = bradley_terry(tensor(2, 0.5), margin=tensor(1), label_smoothing=0.2)
    assert result.item() == pytest.approx(0.474077 + 0.2 * 0.5, abs=1e-6)


def test_half_of_the_labels_wrong_says_nothing_of_the_order() -> None:
    values = some(20, 2)
    loss = bradley_terry(values, label_smoothing=0.5)
    assert torch.allclose(loss, bradley_terry(values.flip(-1), label_smoothing=0.5), rtol=0, atol=1e-15)
    assert not torch.allclose(
        bradley_terry(values, label_smoothing=0.4), bradley_terry(values.flip(-1), label_smoothing=0.4)
    )


def test_of_three_responses_every_ordered_pair_counts_alike() -> None:
    """Rewards 2, 1, 0: gaps 1, 2, 1; (0.313262 + 0.126928 + 0.313262) / 3 = 0.251151."""
    assert bradley_terry(tensor(2, 1, 0)).item() == pytest.approx(0.251151, abs=1e-6)


def test_margins_stand_in_the_order_of_the_gaps() -> None:
    """Rewards 3, 1, 0: gaps 2, 3, 1 of (1, 2), (1, 3), (2, 3); the same margins leave 0, whose loss is ln 2."""
    assert gaps(tensor(3, 1, 0)).tolist() == [2, 3, 1]
    assert bradley_terry(tensor(3, 1, 0), margin=tensor(2, 3, 1)).item() == pytest.approx(math.log(2), abs=1e-15)
    assert bradley_terry(tensor(3, 1, 0), margin=tensor(3, 2, 1)).item() > 0.72


def test_plackett_luce_by_hand() -> None:
    """Worths 3, 2, 1: drawn in this order with probability 3/6 * 2/3 = 1/3."""
    assert plackett_luce(tensor(3, 2, 1).log()).item() == pytest.approx(math.log(3), abs=1e-15)
    assert plackett_luce(tensor(1, 2, 3).log()).item() == pytest.approx(math.log(6 * 5 / 2), abs=1e-14)


def test_plackett_luce_of_a_pair_is_bradley_terry() -> None:
    values = some(50, 2)
    assert torch.equal(plackett_luce(values), bradley_terry(values))


def test_plackett_luce_keeps_its_digits() -> None:
    """Rewards 100 and 0: log(1 + e^-100) = 3.72e-44, which logsumexp - r rounds to 0."""
    assert plackett_luce(tensor(100, 0)).item() == pytest.approx(math.exp(-100))
    assert plackett_luce(tensor(-1e4, 1e4)).item() == 2e4


def test_centring_by_hand() -> None:
    """Of 2 and -0.5: 1.5^2. Of 2, 1, 0: the pairs' sums are 3, 2, 1; the mean squares are 14/3 and 5/3."""
    assert pair_sum(tensor(2, -0.5)).item() == 2.25 and each(tensor(2, -0.5)).item() == 2.125
    assert pair_sum(tensor(2, 1, 0)).item() == pytest.approx(14 / 3)
    assert each(tensor(2, 1, 0)).item() == pytest.approx(5 / 3)


def test_length_explains_a_part_of_the_preference() -> None:
    """Equal rewards of 10 and 5 tokens at 0.2 a token: logit 1, -log s(1) = 0.313262 where ln 2 would stand."""
    compared = explained_by_length(tensor(0, 0), torch.tensor([10, 5]), 0.2)
    assert bradley_terry(compared).item() == pytest.approx(0.313262, abs=1e-6)


def settings(**options: Any) -> Reward:
    return Reward.parse({"batch_size": 1, "learning_rate": 1, **options}, "tests")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.201413),
        ({"label_smoothing": 0.2}, 0.501413),
        ({"margin": "scores"}, 0.474077),
        ({"loss": "plackett_luce"}, 0.201413),
        ({"centring": "pair_sum", "centring_coefficient": 0.1}, 0.201413 + 0.1 * 6.25),
        ({"centring": "each", "centring_coefficient": 0.1}, 0.201413 + 0.1 * 2.125),
        ({"length_penalty": 0.1}, 0.126928),  # 5 tokens more: -log s(1.5 + 0.5)
        # What is centred is the reward, not what length explains.
        ({"length_penalty": 0.1, "centring": "each", "centring_coefficient": 0.1}, 0.126928 + 0.1 * 2.125),
    ],
)
def test_options_of_the_loss_by_hand(options: dict[str, Any], expected: float) -> None:
    """Rewards 2 and 0.5 of 10 and 5 tokens, the margin 1 where it is read."""
    margin = tensor(1) if options.get("margin") == "scores" else None
    result = reward_loss(settings(**options), tensor(2, 0.5), torch.tensor([10, 5]), margin)
    assert result.item() == pytest.approx(expected, abs=1e-6)
