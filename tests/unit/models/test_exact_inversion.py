"""Sampling by whole numbers, as on devices whose sums have no order."""

import torch

from prefdag.models.generation import invert_exactly


def test_a_token_without_probability_is_never_chosen() -> None:
    """The smallest uniform number chooses the first token that has a probability."""
    logits = torch.tensor([[float("-inf"), 0.0, 0.0]])
    assert invert_exactly(logits, torch.tensor([0.0]), 1.0).tolist() == [1]
    assert invert_exactly(logits, torch.tensor([0.5]), 1.0).tolist() == [2]
