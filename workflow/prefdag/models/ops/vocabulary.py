"""The vocabulary's two tables, embedding and output head, as memory-saving autograd functions.

Shapes: T positions, D hidden size, V vocabulary.

**Head.** Log-probs of targets without keeping or recomputing logits. The forward pass turns the logits into
E = exp(logit - maximum) in place, a block of rows at a time while they are in the cache, with row sums s. The backward
pass multiplies with them:

    d log p(y) / d logits = onehot(y) - E / s,  so with M = E - s onehot  dH = -(g / s) M W  and  dW = -M^T (g / s) H

That takes three matrix products, as many as a head without a loss, and one pass over the logits. On a CPU allocating
large buffers costs more than arithmetic, so M is written to one reused buffer. Under autocast the products' factors are
in half precision; accumulation, exponentials, sums and the difference M are not. On a CPU products of bf16 round their
results to bf16, so the targets' logits are computed apart, in float32.

**Gradients in place.** For every micro-batch autograd builds a dense [V, D] gradient of mostly zeros for each table and
adds it to `.grad`: with 151,936 entries that was a quarter of a training step. Inside `in_place_gradients` a backward
pass adds only its rows to `.grad`. `backward()` sees such gradients; `torch.autograd.grad` does not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from prefdag.models.ops.device import precision

CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # logits in memory at a time
BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 1 << 30}  # rows whose logits stay in a core's cache during the exponentials

# Called with a block of positions, their logits minus the row's maximum [b, V], the exponentials and the row sums.
Observer = Callable[[slice, Tensor, Tensor, Tensor], None]

_state = {"in_place": False}


@contextmanager
def in_place_gradients() -> Iterator[None]:
    """While active, backward passes add the gradients of tables that are leaves directly to their `.grad`."""
    before, _state["in_place"] = _state["in_place"], True
    try:
        yield
    finally:
        _state["in_place"] = before


def gradient_buffer(weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the tensor to add the gradient of a weight [V, D] to, and what its backward pass must return."""
    if not (_state["in_place"] and weight.is_leaf):
        fresh = torch.zeros_like(weight)
        return fresh, fresh
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad, None


_copies = WeakTensorKeyDictionary()  # weight -> (its state, copy)


def half_copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight of any shape in a half-precision type, cast again only once the weight has changed.

    A fused optimizer does not count versions, so every optimizer's step discards all copies.
    """
    state = (weight._version, weight.untyped_storage()._cdata, dtype)
    entry = _copies.get(weight)
    if entry is None or entry[0] != state:
        entry = _copies[weight] = (state, weight.detach().to(dtype))
    copy: Tensor = entry[1]
    return copy


register_optimizer_step_post_hook(lambda *_: _copies.clear())


def embed(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    """Return `embedding(ids)`, [..., D], for token ids [...]."""
    return _Embed.apply(ids, embedding.weight, embedding.padding_idx)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding = padding
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ids, weight = ctx.saved_tensors
        if ctx.padding is not None:  # as in nn.Embedding, the padding token's row gets no gradient
            grad = grad.masked_fill((ids == ctx.padding)[..., None], 0)
        table, returned = gradient_buffer(weight)
        table.index_add_(0, ids.flatten(), grad.flatten(0, -2))
        return None, returned, None


class Buffer:
    """Reused memory for one chunk of logits.

    The last caller of `take` owns it. `ticket` increases with each one, so that an earlier owner knows that its values
    are gone and must be recomputed.
    """

    def __init__(self) -> None:
        self.ticket = 0
        self._memory = torch.empty(0)

    def take(self, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialised [rows, width] tensor."""
        self.ticket += 1
        if self._memory.numel() < rows * width or (self._memory.dtype, self._memory.device) != (dtype, device):
            self._memory = torch.empty(rows * width, dtype=dtype, device=device)
        return self._memory[: rows * width].view(rows, width)


BUFFER = Buffer()


def target_logprobs(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    chunk_bytes: int | None = None,
    observe: Observer | None = None,
) -> Tensor:
    """Return log softmax(states weight^T + bias)[target].

    The gradient is exact. The chunk computed last is saved for the backward pass; earlier chunks are recomputed there.

    Args:
        states: hidden states, [T, D].
        weight: the head, [V, D].
        bias: [V].
        target: token ids, [T].
        chunk_bytes: memory for logits, independent of T; by default CHUNK_BYTES of the device.
        observe: is shown every block of logits once, in order, without gradient.

    Returns:
        Log-probs in nats, [T], float32 or wider.
    """
    chunk_bytes = CHUNK_BYTES[weight.device.type] if chunk_bytes is None else chunk_bytes
    dtype = precision(states)
    size = dtype.itemsize if weight.device.type == "cpu" else weight.element_size()
    rows = max(1, chunk_bytes // (size * len(weight)))
    return _TargetLogProbs.apply(states, weight, bias, target, rows, dtype, observe)


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        rows: int,
        dtype: torch.dtype,
        observe: Observer | None,
    ) -> Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        values, sums = (torch.empty(len(target), dtype=wide, device=weight.device) for _ in range(2))
        table = table_of(weight, dtype)
        for part in _chunks(len(target), rows):
            of_part = None if observe is None else _shifted(observe, part.start)
            exps, values[part], sums[part] = _exponentials(states[part].to(dtype), table, bias, target[part], of_part)
        ctx.save_for_backward(states, weight, bias, target, sums)
        ctx.rows, ctx.dtype, ctx.ticket = rows, dtype, BUFFER.ticket
        ctx.exps = exps if len(target) else None  # a view of the buffer, valid while BUFFER.ticket is ctx.ticket
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, target, sums = ctx.saved_tensors
        grad_states = torch.empty_like(states)
        # A frozen head, of a model with an adapter, needs no gradient of its own.
        grad_weight, returned = gradient_buffer(weight) if ctx.needs_input_grad[1] else (None, None)
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        parts, table = _chunks(len(target), ctx.rows), table_of(weight, ctx.dtype)
        for number, part in reversed(list(enumerate(parts))):  # the last chunk first, while it is still in the buffer
            if number == len(parts) - 1 and BUFFER.ticket == ctx.ticket:
                exps = ctx.exps
            else:
                exps, *_ = _exponentials(states[part].to(ctx.dtype), table, bias, target[part])
            BUFFER.ticket += 1  # the lines below overwrite the buffer
            factor = -grad[part] / sums[part]
            if grad_bias is not None:
                grad_bias += torch.mv(exps.T, factor.to(exps.dtype))
            exps = exps.to(ctx.dtype)
            matmul(exps, table, out=grad_states[part]).mul_(factor[:, None])
            if grad_weight is None:
                continue
            scaled = (states[part] * factor[:, None]).to(ctx.dtype)
            if ctx.dtype == grad_weight.dtype:
                grad_weight.addmm_(exps.T, scaled)
            else:
                grad_weight += matmul(exps.T, scaled, out=torch.empty_like(grad_weight))  # very large tensor: V x D
        return grad_states, returned, grad_bias, None, None, None, None


def matmul(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Write left @ right to `out`, accumulated in the dtype of `out`, which may be wider than the factors'.

    Args:
        left, right: [T, K] and [K, V], of one dtype.
        out: [T, V].
    """
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(torch.mm(left, right))


def table_of(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the head's weight in the type of the products: on a CPU from one step to the next the same copy.

    Args:
        weight: [V, D].
        dtype: of the products.
    """
    return half_copy(weight, dtype) if weight.device.type == "cpu" and weight.dtype != dtype else weight.to(dtype)


def _chunks(num: int, rows: int) -> list[slice]:
    return [slice(begin, min(begin + rows, num)) for begin in range(0, num, rows)]


def _shifted(observe: Observer, begin: int) -> Observer:
    return lambda rows, *values: observe(slice(begin + rows.start, begin + rows.stop), *values)


def products(states: Tensor, weight: Tensor, buffer: Buffer) -> Tensor:
    """Return states [T, D] times weight^T in the buffer, [T, V]: in half precision on a CPU, else float32 or wider."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    kind = states.dtype if states.device.type == "cpu" else dtype
    return matmul(states, weight.T, out=buffer.take(len(states), len(weight), kind, states.device))


def block_of_logits(
    block: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logits [b, V] in float32 or wider, in place where the products have that type, and the targets' [b].

    Args:
        block: rows of `products`, [b, V].
        states: [b, D].
        weight: [V, D].
        bias: [V].
        target: token ids, [b].
    """
    dtype = torch.promote_types(states.dtype, torch.float32)
    rows, index = block.to(dtype), target[:, None]
    if block.dtype != dtype:  # the targets' products are computed without rounding
        rows.scatter_(1, index, (states.to(dtype) * weight[target].to(dtype)).sum(1, keepdim=True))
    if bias is not None:
        rows.add_(bias)
    return rows, rows.gather(1, index).squeeze(1)


def _exponentials(
    states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, observe: Observer | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return M [T, V] in the buffer, log-probs of the targets [T], and the row sums [T]."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    logits = products(states, weight, BUFFER)
    values, sums = (torch.empty(len(states), dtype=dtype, device=states.device) for _ in range(2))
    block = max(1, BLOCK_BYTES[logits.device.type] // (dtype.itemsize * logits.shape[1]))
    for part in _chunks(len(states), block):
        index = target[part][:, None]
        rows, targets = block_of_logits(logits[part], states[part], weight, bias, target[part])
        top = rows.amax(1)
        rows.sub_(top[:, None])
        scores = None if observe is None else rows.clone()
        rows.exp_()
        sums[part] = rows.sum(1)
        values[part] = targets - top - sums[part].log()
        if observe is not None and scores is not None:
            observe(part, scores, rows, sums[part])
        rows.scatter_(1, index, rows.gather(1, index) - sums[part][:, None])
        if logits.dtype != dtype:
            logits[part] = rows
    return logits, values, sums
