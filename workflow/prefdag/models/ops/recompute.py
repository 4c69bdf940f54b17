"""Activations within a memory budget: blocks beyond it are recomputed in the backward pass, to the same bits.

What a block keeps for its backward pass is measured once, in the first forward of a training, and taken to grow with
the tokens of a micro-batch. A micro-batch that fits is not touched; of a larger one the earliest blocks are
recomputed (Chen et al. 2016, Training deep nets with sublinear memory cost): the backward pass comes to them last, when
the others' activations are gone.
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
    """While inside, a forward pass with gradients keeps at most about `budget_gb` of its blocks' activations.

    None: everything is kept. The last block is always kept, as its MLP sees few positions (`logprobs`).
    """
    if budget_gb is None:
        yield
        return
    blocks = blocks_of(model)
    kept = _Kept(budget_gb * GB, frozenset(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())))
    for number, block in enumerate(blocks[:-1]):
        block.forward = kept.forward(block.forward, number, len(blocks))
    try:
        yield
    finally:
        for block in blocks[:-1]:
            del block.forward  # the class's own comes back


def blocks_of(model: Any) -> list[Any]:
    """The transformer blocks, first to last; GPT-2 calls them `h`."""
    base = model.base_model
    return list(base.h if hasattr(base, "h") else base.layers)


class _Kept:
    """How many blocks may keep their activations. unmeasured: data pointers of tensors that are there in any case."""

    def __init__(self, budget: float, unmeasured: frozenset[int]) -> None:
        self.budget, self.unmeasured = budget, unmeasured
        self.per_token: float | None = None  # bytes that one block keeps for a token

    def forward(self, whole: Callable[..., Any], number: int, num_blocks: int) -> Callable[..., Any]:
        """A block's forward that keeps its activations where they fit beside those of all later blocks."""

        def within_budget(states: Tensor, *given: Any, **named: Any) -> Any:
            if not torch.is_grad_enabled():
                return whole(states, *given, **named)
            tokens = states.shape[0] * states.shape[1]
            if self.per_token is None:
                with _saved(self.unmeasured) as sizes:
                    whole(states, *given, **named)
                self.per_token = sum(sizes.values()) / tokens
            if (num_blocks - number) * self.per_token * tokens <= self.budget:
                return whole(states, *given, **named)
            # There is no dropout, so no state of random numbers to bring back.
            return checkpoint(whole, states, *given, use_reentrant=False, preserve_rng_state=False, **named)

        return within_budget


@contextmanager
def _saved(unmeasured: frozenset[int]) -> Iterator[dict[int, int]]:
    """Bytes of every storage that is saved for a backward pass while inside, but for those at `unmeasured`."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # The mask is saved by every block and is there once, whatever is recomputed.
        if tensor.data_ptr() not in unmeasured and tensor.is_floating_point():
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
