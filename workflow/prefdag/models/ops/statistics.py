"""Entropy and KL over the vocabulary, collected while the head's logits are in the cache.

Computing them in a pass of their own would take the head's products a second time, which at a vocabulary of 49,152 was
a quarter of an on-policy step.

Shapes: T positions, b of a block; D hidden size; V vocabulary.
"""

import torch
from torch import Tensor

from prefdag.models.ops.device import precision
from prefdag.models.ops.vocabulary import Buffer, block_of_logits, products, table_of

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}  # the reference's logits in memory at a time
BUFFER = Buffer()


class HeadStatistics:
    """An observer of `prefdag.models.ops.vocabulary.target_logprobs`.

    Attributes:
        entropy: of the policy at each position in nats, [T].
        reference: the reference's log-probs of the targets, [T]; None without a reference.
        kl: KL(policy || reference) at each position in nats, [T]; None without a reference.
    """

    def __init__(self, target: Tensor, dtype: torch.dtype, other: tuple[Tensor, Tensor, Tensor | None] | None) -> None:
        """target: [T]. dtype: of the results. other: the reference's hidden states [T, D], head [V, D] and bias [V]."""
        self.target, self.other = target, other
        self.entropy = torch.empty(len(target), dtype=dtype, device=target.device)
        self.reference = None if other is None else torch.empty_like(self.entropy)
        self.kl = None if other is None else torch.empty_like(self.entropy)
        self._products, self._rows = torch.empty(0), slice(0, 0)

    def __call__(self, rows: slice, scores: Tensor, exps: Tensor, sums: Tensor) -> None:
        """Measure a block. scores: logits minus the row's maximum [b, V]; exps: their exponentials; sums: of them."""
        log_sum = sums.log()
        self.entropy[rows] = log_sum - torch.linalg.vecdot(exps, scores) / sums
        if self.other is None:
            return
        assert self.reference is not None and self.kl is not None
        others, targets = self._of_reference(rows)
        top = others.amax(1)
        others.sub_(top[:, None])
        scores.sub_(others)  # the caller reads neither again
        other_sum = others.exp_().sum(1).log()
        self.reference[rows] = targets - top - other_sum
        self.kl[rows] = torch.linalg.vecdot(exps, scores) / sums - log_sum + other_sum

    def _of_reference(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the reference's logits of a block [b, V] and of its targets [b]; the products are of many blocks."""
        assert self.other is not None
        states, weight, bias = self.other
        dtype = precision(states)
        table = table_of(weight, dtype)
        if rows.stop > self._rows.stop:
            size = CHUNK_BYTES[weight.device.type] // (weight.element_size() * len(weight))
            self._rows = slice(rows.start, min(len(states), max(rows.stop, rows.start + size)))
            self._products = products(states[self._rows].to(dtype), table, BUFFER)
        block = self._products[rows.start - self._rows.start : rows.stop - self._rows.start]
        return block_of_logits(block, states[rows].to(dtype), table, bias, self.target[rows])
