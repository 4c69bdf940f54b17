"""Golden values of the ground truths that are functions of the text."""

import pytest
import torch

from prefdag.config.sections.ground_truths import GROUND_TRUTHS
from prefdag.rewards.ground_truth import load_ground_truth

# Texts and their values. VADER: the lexicon has 1.9 for "good"; its compound is 1.9 / sqrt(1.9^2 + 15) = 0.4404.
GOLDEN = {
    "vader": (["good", "a table", ""], [0.4404, 0, 0]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name: str):
    texts, values = GOLDEN[name]
    computed = load_ground_truth(name, None, torch.device("cpu"))(texts)
    assert computed.dtype == "float64" and computed.tolist() == pytest.approx(values, abs=1e-4)


def test_every_ground_truth_has_a_golden_value():
    """`classifier` has none: its values are those of its weights."""
    assert {*GOLDEN, "classifier"} == set(GROUND_TRUTHS)
