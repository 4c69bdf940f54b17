"""Dropout whose mask is a function of the seed, the step, the layer and the micro-batch's tokens alone.

A forward pass that is repeated, in gradient caching or to recompute activations, drops the same values again, and a
resumed training drops those that an uninterrupted one would.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prefdag.seeds import named_seed

ATTRIBUTE = "prefdag_dropout"


@dataclass
class Place:
    """Where a training is: its step from 0, None outside of one, and a digest of the micro-batch's tokens."""

    step: int | None = None
    tokens: str = ""


class SeededDropout(nn.Module):
    """Zero a share of the inputs and scale the others, within the steps of a training.

    Attributes:
        share: of the inputs that are dropped, on average.
        seed: of the masks.
        number: of the layer.
        place: where the training is; all layers of a model share it.
    """

    def __init__(self, share: float, seed: int, number: int, place: Place) -> None:
        super().__init__()
        self.share, self.seed, self.number, self.place = share, seed, number, place

    def forward(self, values: Tensor) -> Tensor:
        """Return values of any shape, some of them zero."""
        if self.place.step is None or not self.training:
            return values
        seed = named_seed(self.seed, "adapter dropout", self.place.step, self.place.tokens, self.number)
        random = torch.Generator(values.device).manual_seed(seed)
        mask = torch.empty_like(values, dtype=torch.float32).bernoulli_(1 - self.share, generator=random)
        return values * (mask / (1 - self.share)).to(values.dtype)


def seed_dropout(model: nn.Module, share: float, seed: int) -> None:
    """Put seeded dropout in place of every `nn.Dropout` of a model with a probability above 0."""
    place, number = Place(), 0
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Dropout) and module.p:
                setattr(parent, name, SeededDropout(share, seed, number, place))
                number += 1
    object.__setattr__(model, ATTRIBUTE, place)


@contextmanager
def dropout_of_step(model: nn.Module, step: int) -> Iterator[None]:
    """While active, a model's seeded dropout is that of a step, from 0."""
    place: Place | None = getattr(model, ATTRIBUTE, None)
    if place is None:
        yield
        return
    place.step = step
    try:
        yield
    finally:
        place.step = None


def read_tokens(model: nn.Module, tokens: Tensor) -> None:
    """Let a model's seeded dropout depend on the tokens that it is about to read, of any shape."""
    place: Place | None = getattr(model, ATTRIBUTE, None)
    if place is not None and place.step is not None:
        place.tokens = hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()
