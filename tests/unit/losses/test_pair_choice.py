"""Which scored responses become a pair, by hand."""

import pytest
import torch

from prefdag.losses.pair_choice import PairRule, choose_pair, first_if_not_worse, margin_pairs

SCORES = torch.tensor([[1.0, 5.0, 3.0], [4.0, 2.0, 2.5], [7.0, 7.0, 7.0]])


@pytest.mark.parametrize(
    ("rule", "pairs"),
    [
        ("max_min", [[1, 0], [0, 1], [-1, -1]]),
        ("max_random", [[1, 0], [0, 1], [-1, -1]]),
        ("max_max", [[1, 2], [0, 2], [-1, -1]]),
        ("first_two", [[1, 0], [0, 1], [-1, -1]]),
    ],
)
def test_each_rule_by_hand(rule: PairRule, pairs: list[list[int]]) -> None:
    """The chosen response comes first; equal scores are no pair."""
    assert choose_pair(SCORES, rule).tolist() == pairs


def test_of_two_equal_scores_the_first_is_chosen() -> None:
    assert first_if_not_worse(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0]])).tolist() == [[1, 0], [0, 1], [0, 1]]


def test_pairs_wider_than_the_threshold() -> None:
    """Gaps of the first prompt: 5 - 3 = 2, 5 - 1 = 4, 3 - 1 = 2; a gap of the threshold is none."""
    assert margin_pairs(SCORES, 2.0) == [[(1, 0)], [], []]
    assert margin_pairs(SCORES, 1.75) == [[(1, 0), (1, 2), (2, 0)], [(0, 1)], []]
