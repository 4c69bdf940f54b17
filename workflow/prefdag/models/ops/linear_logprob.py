"""The output head and its log-softmax as one function: log-probs of targets without keeping or recomputing logits.

Shapes: T positions, D hidden size, V vocabulary. The forward pass turns the logits into E = exp(logit - maximum) in
place, row block by row block while they are in the cache, with sums s; the backward pass multiplies with them:

    d log p(y) / d logits = onehot(y) - E / s,  so with M = E - s onehot  dH = -(g / s) M W  and  dW = -M^T (g / s) H

Three products in all, as without any loss, and one pass over the logits. On a CPU fresh large buffers cost more than
arithmetic, so E lies in a buffer that is used again and again. Under autocast the products' factors are in half
precision; what products are summed in, exponentials and sums are not, nor the difference M.
"""

from typing import Any

import torch
from torch import Tensor

from prefdag.models.ops.device import precision
from prefdag.models.ops.sparse_grad import place_of

CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
BLOCK_BYTES = {
    "cpu": 2 << 20,
    "cuda": 1 << 30,
}  # rows whose logits stay in a core's cache while they become exponentials


class Buffer:
    """Memory for one chunk of logits. Whoever takes it last owns it; an earlier owner must compute its part again."""

    def __init__(self) -> None:
        self.ticket = 0
        self._memory = torch.empty(0)

    def take(self, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised [rows, width] tensor."""
        self.ticket += 1
        if self._memory.numel() < rows * width or (self._memory.dtype, self._memory.device) != (dtype, device):
            self._memory = torch.empty(rows * width, dtype=dtype, device=device)
        return self._memory[: rows * width].view(rows, width)


BUFFER = Buffer()


def target_logprobs(
    states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk_bytes: int | None = None
) -> Tensor:
    """log softmax(states weight^T + bias)[target]: states [T, D], weight [V, D], bias [V], target [T] -> [T].

    Exact for any use of the result. The chunk that was computed last is kept for the backward pass, others are computed
    again there; memory is `chunk_bytes` (by default the device's CHUNK_BYTES) whatever T.
    """
    chunk_bytes = CHUNK_BYTES[weight.device.type] if chunk_bytes is None else chunk_bytes
    rows = max(1, chunk_bytes // (weight.element_size() * len(weight)))
    return _TargetLogProbs.apply(states, weight, bias, target, rows, precision(states))


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, rows: int, dtype: torch.dtype
    ) -> Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        found, sums = (torch.empty(len(target), dtype=wide, device=weight.device) for _ in range(2))
        table = weight.to(dtype)
        for part in _parts(len(target), rows):
            kept, found[part], sums[part] = _exponentials(states[part].to(dtype), table, bias, target[part])
        ctx.save_for_backward(states, weight, bias, target, sums)
        ctx.rows, ctx.dtype, ctx.ticket = rows, dtype, BUFFER.ticket
        ctx.kept = kept if len(target) else None
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, target, sums = ctx.saved_tensors
        of_states = torch.empty_like(states)
        of_weight, returned = place_of(weight)
        of_bias = None if bias is None else torch.zeros_like(bias)
        parts, table = _parts(len(target), ctx.rows), weight.to(ctx.dtype)
        for number, part in reversed(list(enumerate(parts))):  # the last one first, while it is still in the buffer
            if number == len(parts) - 1 and BUFFER.ticket == ctx.ticket:
                kept = ctx.kept
            else:
                kept, *_ = _exponentials(states[part].to(ctx.dtype), table, bias, target[part])
            BUFFER.ticket += 1  # what is in the buffer is no longer what a forward pass left there
            index = target[part][:, None]
            kept.scatter_(1, index, kept.gather(1, index) - sums[part][:, None])
            factor = -grad[part] / sums[part]
            if of_bias is not None:
                of_bias.addmv_(kept.T, factor)
            kept = kept.to(ctx.dtype)
            _product(kept, table, out=of_states[part]).mul_(factor[:, None])
            scaled = (states[part] * factor[:, None]).to(ctx.dtype)
            if ctx.dtype == of_weight.dtype:
                of_weight.addmm_(kept.T, scaled)
            else:
                of_weight += _product(kept.T, scaled, out=torch.empty_like(of_weight))
        return of_states, returned, of_bias, None, None, None


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """left right, summed in the type of `out`, which may be wider than the factors'."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)


def _parts(num: int, rows: int) -> list[slice]:
    return [slice(begin, min(begin + rows, num)) for begin in range(0, num, rows)]


def _exponentials(states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logit - maximum) of each row [T, V] in the buffer, log-probs of the targets [T], and the rows' sums [T]."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    logits = _product(states, weight.T, out=BUFFER.take(len(states), len(weight), dtype, states.device))
    found, sums = logits.new_empty(len(states)), logits.new_empty(len(states))
    block = max(1, BLOCK_BYTES[logits.device.type] // (logits.element_size() * logits.shape[1]))
    for part in _parts(len(states), block):
        rows = logits[part] if bias is None else logits[part].add_(bias)
        own = rows.gather(1, target[part][:, None]).squeeze(1)
        top = rows.amax(1)
        rows.sub_(top[:, None]).exp_()
        sums[part] = rows.sum(1)
        found[part] = own - top - sums[part].log()
    return logits, found, sums
