"""Attention on a CPU without a mask: a tile of queries at a time, over the keys that the tile may see.

Under a mask a row of L tokens costs L x L products, hidden or not; here a sequence costs about half its queries
times its keys. The tiles' probabilities are saved for the backward pass.

Shapes: H heads of D over N = R L places of the grid of packed rows; n queries of a tile, m keys.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prefdag.models.ops.varlen import Sequence
from prefdag.models.packing import Segments

TILE = 64  # queries
MIN_LENGTH = 256  # tokens of a row; below it many small products cost more than the mask
MAX_BYTES = 64 << 20  # of one layer's saved probabilities


def is_faster(query: Tensor, segments: Segments) -> bool:
    """Return whether to prefer tiles to a mask for `query` [R, H, L, D]: rows are long, and fit in MAX_BYTES."""
    _, heads, length, _ = query.shape
    if length < MIN_LENGTH:
        return False
    tiles = (tile for sequence in segments.sequences for tile in _tiles(sequence))
    return heads * max(4, query.element_size()) * sum((end - begin) * seen for begin, end, seen in tiles) <= MAX_BYTES


def attend_tiled(query: Tensor, key: Tensor, value: Tensor, sequences: list[Sequence], scale: float | None) -> Tensor:
    """Return causal attention within each sequence.

    Args:
        query, key, value: [R, H, L, D].
        sequences: places in the grid of R x L.
        scale: factor on the scores; None: D^-0.5.

    Returns:
        [R, L, H, D], zeros at padding.
    """
    rows, heads, length, size = query.shape
    flat = [part.transpose(0, 1).reshape(heads, rows * length, size) for part in (query, key, value)]
    out: Tensor = _Tiles.apply(*flat, sequences, size**-0.5 if scale is None else scale)
    return out.view(heads, rows, length, size).permute(1, 2, 0, 3).contiguous()


def _tiles(sequence: Sequence) -> Iterator[tuple[int, int, int]]:
    """Yield each tile's places [begin, end), and how many of the sequence's keys its last query sees."""
    (first, branch), (begin, end) = sequence
    for at in range(begin, end, TILE):
        last = min(at + TILE, end)
        yield at, last, branch - first + last - begin


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, sequences: list[Sequence], scale: float) -> Tensor:
        out = torch.zeros_like(query)
        saved = []  # probabilities of each tile, [H, n, m]
        for sequence in sequences:
            keys, values = _gather(key, sequence), _gather(value, sequence)
            for begin, end, seen in _tiles(sequence):
                scores = torch.bmm(query[:, begin:end], keys[:, :seen].mT).mul_(scale)
                scores[:, :, begin - end :] += _causal(end - begin, scores.dtype)
                saved.append(scores.softmax(-1))
                out[:, begin:end].baddbmm_(saved[-1], values[:, :seen], beta=0)
        ctx.save_for_backward(query, key, value, *saved)
        ctx.sequences, ctx.scale = sequences, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *saved = ctx.saved_tensors
        grad, scale, number = grad.contiguous(), ctx.scale, 0
        grad_query, grad_key, grad_value = (torch.zeros_like(part) for part in (query, key, value))
        for sequence in ctx.sequences:
            keys, values = _gather(key, sequence), _gather(value, sequence)
            grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
            for begin, end, seen in _tiles(sequence):
                probs, grad_out = saved[number], grad[:, begin:end]
                number += 1
                grad_values[:, :seen].baddbmm_(probs.mT, grad_out)
                grad_probs = torch.bmm(grad_out, values[:, :seen].mT)
                grad_scores = torch._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
                grad_query[:, begin:end].baddbmm_(grad_scores, keys[:, :seen], beta=0, alpha=scale)
                grad_keys[:, :seen].baddbmm_(grad_scores.mT, query[:, begin:end], alpha=scale)
            _scatter_add(grad_key, grad_keys, sequence)
            _scatter_add(grad_value, grad_values, sequence)
        return grad_query, grad_key, grad_value, None, None


def _gather(values: Tensor, sequence: Sequence) -> Tensor:
    """Return the rows [H, m, D] of a sequence's keys, the prompt's first, from values [H, N, D]."""
    prompt, queries = (values[:, slice(*places)] for places in sequence)
    return torch.cat([prompt, queries], dim=1)


def _scatter_add(gradient: Tensor, of_keys: Tensor, sequence: Sequence) -> None:
    """Add the gradient of a sequence's keys [H, m, D] to the grid's [H, N, D]."""
    prompt, queries = (gradient[:, slice(*places)] for places in sequence)
    prompt += of_keys[:, : prompt.shape[1]]
    queries += of_keys[:, prompt.shape[1] :]


@functools.cache
def _causal(size: int, dtype: torch.dtype) -> Tensor:
    """Return minus infinity above the diagonal, zero elsewhere: [size, size]."""
    return torch.full((size, size), float("-inf"), dtype=dtype).triu(1)
