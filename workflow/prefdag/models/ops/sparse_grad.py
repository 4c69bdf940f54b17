"""Gradients of a vocabulary's two tables, added to `.grad` where it lies.

Autograd builds a whole [V, D] table of mostly zeros for every micro-batch, for the embedding and for the head, and then
adds it to `.grad`: with 151,936 entries that was a quarter of a training step. Inside `sparse_embedding`, a backward
pass adds only its rows to `.grad`. `backward()` sees such gradients; `torch.autograd.grad` does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_state = {"in_place": False}


@contextmanager
def sparse_embedding() -> Iterator[None]:
    """While inside, backward passes add the gradients of tables that are leaves to their `.grad`."""
    before, _state["in_place"] = _state["in_place"], True
    try:
        yield
    finally:
        _state["in_place"] = before


def place_of(weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Where a backward pass is to add a weight's gradient, and what it is to return for the weight."""
    if not (_state["in_place"] and weight.is_leaf):
        fresh = torch.zeros_like(weight)
        return fresh, fresh
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad, None


def embedded(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    """What `embedding(ids)` gives, [..., D]: the rows of its table."""
    return _Rows.apply(ids, embedding.weight, embedding.padding_idx)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding = padding
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ids, weight = ctx.saved_tensors
        if ctx.padding is not None:  # as in nn.Embedding, the row of the padding token learns nothing
            grad = grad.masked_fill((ids == ctx.padding)[..., None], 0)
        table, returned = place_of(weight)
        table.index_add_(0, ids.flatten(), grad.flatten(0, -2))
        return None, returned, None
