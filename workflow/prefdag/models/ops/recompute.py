"""Activation checkpointing within a memory budget. Recomputed activations have the same bits.

What a block saves for its backward pass is measured once, in a training's first forward pass, and assumed to be
proportional to the tokens of a micro-batch. A micro-batch that fits in the budget is not affected; in a larger one the
earliest blocks are recomputed, since the backward pass reaches them last, when later activations are freed.

Reference: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

GB = 1e9


@contextmanager
def recompute_blocks(model: nn.Module, budget_gb: float | None) -> Iterator[None]:
    """While active, a forward pass with gradients saves at most about `budget_gb` of the blocks' activations.

    None saves everything. The last block is never recomputed: its MLP runs at few positions (`logprobs`).
    """
    if budget_gb is None:
        yield
        return
    blocks = blocks_of(model)
    budget = _Budget(budget_gb * GB, frozenset(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())))
    for number, block in enumerate(blocks[:-1]):
        block.forward = budget.wrap(block.forward, number, len(blocks))
    try:
        yield
    finally:
        for block in blocks[:-1]:
            del block.forward  # the class's method is visible again


def blocks_of(model: Any) -> list[Any]:
    """Return the transformer blocks, first to last; GPT-2 calls them `h`."""
    base = model.base_model
    return list(base.h if hasattr(base, "h") else base.layers)


class _Budget:
    """Decides which blocks save their activations. unmeasured: data pointers of tensors that exist in any case."""

    def __init__(self, budget: float, unmeasured: frozenset[int]) -> None:
        self.budget, self.unmeasured = budget, unmeasured
        self.per_token: float | None = None  # bytes that one block saves per token

    def wrap(self, forward: Callable[..., Any], number: int, num_blocks: int) -> Callable[..., Any]:
        """Return a block's forward that is recomputed unless its and all later blocks' activations fit."""

        def within_budget(states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(states, *args, **kwargs)
            tokens = states.shape[0] * states.shape[1]
            if self.per_token is None:
                with _saved_bytes(self.unmeasured) as sizes:
                    forward(states, *args, **kwargs)
                self.per_token = sum(sizes.values()) / tokens
            if (num_blocks - number) * self.per_token * tokens <= self.budget:
                return forward(states, *args, **kwargs)
            # Models have no dropout here, so there is no random state to restore.
            return checkpoint(forward, states, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        return within_budget


@contextmanager
def _saved_bytes(unmeasured: frozenset[int]) -> Iterator[dict[int, int]]:
    """Collect the bytes of every storage saved for a backward pass while active, except those at `unmeasured`."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Integers and masks are not counted: every block saves the same mask, which exists once in any case.
        if tensor.data_ptr() not in unmeasured and tensor.is_floating_point():
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
