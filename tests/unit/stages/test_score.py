"""Text statistics of generations."""

import pytest

from prefdag.stages.score import distinct, repetition


def test_repetition_is_the_share_of_four_grams_that_came_before():
    """1 2 3 4 1 2 3 4 1: the 4-grams are 1234 2341 3412 4123 1234 2341, four of six are different."""
    assert repetition({"ids": [1, 2, 3, 4, 1, 2, 3, 4, 1]}) == pytest.approx(1 / 3, abs=1e-15)
    assert repetition({"ids": [7] * 10}) == pytest.approx(6 / 7, abs=1e-15)
    assert repetition({"ids": list(range(10))}) == 0
    assert repetition({"ids": [1, 1, 1]}) == 0, "no 4-gram, no repetition"


def test_distinct_counts_different_n_grams():
    """a b a b: two of four words; ab ba ab: two of three pairs."""
    assert distinct([1, 2, 1, 2], 1) == 0.5
    assert distinct([1, 2, 1, 2], 2) == pytest.approx(2 / 3, abs=1e-15)
