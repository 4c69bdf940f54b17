"""Masks of dropout: another one for each seed, step, layer and micro-batch, and the same one again."""

import torch
from torch import nn

from prefdag.models.ops.seeded_dropout import dropout_of_step, read_tokens, seed_dropout

ONES = torch.ones(4000)


def masks(seed: int = 0, step: int = 0, tokens: int = 0) -> list[torch.Tensor]:
    """What two layers make of ones."""
    model = nn.Sequential(nn.Dropout(0.25), nn.Dropout(0.25)).train()
    seed_dropout(model, 0.25, seed)
    with dropout_of_step(model, step):
        read_tokens(model, torch.tensor([tokens]))
        return [layer(ONES) for layer in model]


def test_every_mask_differs_and_comes_again() -> None:
    places = [{}, {"seed": 1}, {"step": 1}, {"step": 2}, {"tokens": 1}]
    every = [mask for place in places for mask in masks(**place)]
    for number, mask in enumerate(every):
        assert 0.2 < (mask == 0).float().mean() < 0.3 and abs(mask.mean() - 1) < 0.04
        assert not any(torch.equal(mask, other) for other in every[:number])
    assert all(torch.equal(one, other) for one, other in zip(masks(step=1), masks(step=1), strict=True))


def test_outside_of_a_step_nothing_is_dropped() -> None:
    model = nn.Sequential(nn.Dropout(0.25)).train()
    seed_dropout(model, 0.25, 0)
    assert torch.equal(model(ONES), ONES)
    with dropout_of_step(model, 0):
        assert not torch.equal(model(ONES), ONES)
        assert torch.equal(model.eval()(ONES), ONES)
