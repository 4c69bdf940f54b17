"""The output head and its log-softmax as one function: log-probs of targets without keeping or recomputing logits.

Shapes: T positions, D hidden size, V vocabulary. The forward pass turns the logits into exp(logit - maximum) in place,
row block by row block while they are in the cache; the backward pass multiplies with them as they are:

    d log p(y) / d logits = onehot(y) - softmax,  so  dH = g (W[y] - E W / s)  and  dW = onehot^T (g H) - E^T (g H / s)

with E the stored exponentials and s their sums. Three products in all, as without any loss, and one pass over the
logits. On a CPU fresh large buffers cost more than arithmetic, so E lies in a buffer that is used again and again.
"""

from typing import Any

import torch
from torch import Tensor

from prefdag.gradients import place_of

CHUNK_BYTES = 256 << 20
BLOCK_BYTES = 2 << 20  # rows whose logits stay in a core's cache while they are turned into exponentials


class Buffer:
    """Memory for one chunk of logits. Whoever takes it last owns it; an earlier owner must compute its part again."""

    def __init__(self) -> None:
        self.ticket = 0
        self._memory = torch.empty(0)

    def take(self, rows: int, like: Tensor, width: int) -> Tensor:
        """An uninitialised [rows, width] tensor of `like`'s type."""
        self.ticket += 1
        if (
            self._memory.numel() < rows * width
            or self._memory.dtype != like.dtype
            or self._memory.device != like.device
        ):
            self._memory = torch.empty(rows * width, dtype=like.dtype, device=like.device)
        return self._memory[: rows * width].view(rows, width)


BUFFER = Buffer()


def target_logprobs(
    states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """log softmax(states weight^T + bias)[target]: states [T, D], weight [V, D], bias [V], target [T] -> [T].

    Exact for any use of the result. The chunk that was computed last is kept for the backward pass, others are computed
    again there; memory is `chunk_bytes` whatever T.
    """
    return _TargetLogProbs.apply(
        states, weight, bias, target, max(1, chunk_bytes // (weight.element_size() * len(weight)))
    )


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, rows: int) -> Tensor:
        found = states.new_empty(len(target))
        sums = states.new_empty(len(target))
        for part in _parts(len(target), rows):
            kept, found[part], sums[part] = _exponentials(states[part], weight, bias, target[part])
        ctx.save_for_backward(states, weight, bias, target, sums)
        ctx.rows, ctx.ticket = rows, BUFFER.ticket
        ctx.kept = kept if len(target) else None
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, target, sums = ctx.saved_tensors
        of_states = torch.empty_like(states)
        of_weight, returned = place_of(weight)
        of_bias = None if bias is None else torch.zeros_like(bias)
        parts = _parts(len(target), ctx.rows)
        for number, part in reversed(list(enumerate(parts))):  # the last one first, while it is still in the buffer
            last = number == len(parts) - 1 and BUFFER.ticket == ctx.ticket
            kept = ctx.kept if last else _exponentials(states[part], weight, bias, target[part])[0]
            scaled = grad[part] / sums[part]
            torch.mm(kept, weight, out=of_states[part])
            of_states[part].mul_(-scaled[:, None]).add_(weight[target[part]] * grad[part][:, None])
            of_weight.addmm_(kept.T, states[part] * scaled[:, None], alpha=-1)
            of_weight.index_add_(0, target[part], states[part] * grad[part][:, None])
            if of_bias is not None:
                of_bias.addmv_(kept.T, scaled, alpha=-1).index_add_(0, target[part], grad[part])
        return of_states, returned, of_bias, None, None


def _parts(num: int, rows: int) -> list[slice]:
    return [slice(begin, min(begin + rows, num)) for begin in range(0, num, rows)]


def _exponentials(states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logit - maximum) of each row [T, V] in the buffer, log-probs of the targets [T], and the rows' sums [T]."""
    logits = BUFFER.take(len(states), states, len(weight))
    torch.mm(states, weight.T, out=logits)
    found, sums = states.new_empty(len(states)), states.new_empty(len(states))
    block = max(1, BLOCK_BYTES // (logits.element_size() * logits.shape[1]))
    for part in _parts(len(states), block):
        rows = logits[part] if bias is None else logits[part].add_(bias)
        own = rows.gather(1, target[part][:, None]).squeeze(1)
        top = rows.amax(1)
        rows.sub_(top[:, None]).exp_()
        sums[part] = rows.sum(1)
        found[part] = own - top - sums[part].log()
    return logits, found, sums
