"""Attention on a CPU without a mask: queries a tile at a time, each tile over the keys that it may see and no others.

Under a mask a row of L tokens costs L x L whatever is hidden; here a sequence costs about half its queries times its
keys. What is kept for the backward pass are the tiles' probabilities. Plain products and torch's own softmax.

Shapes: H heads of D over N = R L places of the grid of packed rows; n queries of a tile, m keys.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prefdag.models.attention.varlen import Sequence
from prefdag.models.packing import Segments

TILE = 64  # queries
LEAST = 256  # tokens of a row under which many small products cost more than the mask
MOST = 64 << 20  # bytes of one layer's probabilities that may be kept


def is_faster(query: Tensor, segments: Segments) -> bool:
    """Whether tiles are to be preferred to a mask: for rows that are long, but whose probabilities can be kept."""
    _, heads, length, _ = query.shape
    if length < LEAST:
        return False
    each = (tile for sequence in segments.sequences for tile in _tiles(sequence))
    return heads * query.element_size() * sum((end - begin) * seen for begin, end, seen in each) <= MOST


def attend_tiled(query: Tensor, key: Tensor, value: Tensor, found: list[Sequence], scale: float | None) -> Tensor:
    """Attention of query [R, H, L, D] over key and value [R, H, L, D]: [R, L, H, D], zeros at padding."""
    rows, heads, length, size = query.shape
    flat = [part.transpose(0, 1).reshape(heads, rows * length, size) for part in (query, key, value)]
    out: Tensor = _Tiles.apply(*flat, found, size**-0.5 if scale is None else scale)
    return out.view(heads, rows, length, size).permute(1, 2, 0, 3).contiguous()


def _tiles(sequence: Sequence) -> Iterator[tuple[int, int, int]]:
    """Places [begin, end) of each tile's queries, and how many of the sequence's keys its last query sees."""
    (first, branch), (begin, end) = sequence
    for at in range(begin, end, TILE):
        last = min(at + TILE, end)
        yield at, last, branch - first + last - begin


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, found: list[Sequence], scale: float) -> Tensor:
        out = torch.zeros_like(query)
        kept = []
        for sequence in found:
            keys, values = _taken(key, sequence), _taken(value, sequence)
            for begin, end, seen in _tiles(sequence):
                scores = torch.bmm(query[:, begin:end], keys[:, :seen].mT).mul_(scale)
                scores[:, :, begin - end :] += _hidden(end - begin, scores.dtype)
                kept.append(scores.softmax(-1))
                out[:, begin:end].baddbmm_(kept[-1], values[:, :seen], beta=0)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.found, ctx.scale = found, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        grad, scale, number = grad.contiguous(), ctx.scale, 0
        of_query, of_key, of_value = (torch.zeros_like(part) for part in (query, key, value))
        for sequence in ctx.found:
            keys, values = _taken(key, sequence), _taken(value, sequence)
            of_keys, of_values = torch.zeros_like(keys), torch.zeros_like(values)
            for begin, end, seen in _tiles(sequence):
                weights, own = kept[number], grad[:, begin:end]
                number += 1
                of_values[:, :seen].baddbmm_(weights.mT, own)
                of_weights = torch.bmm(own, values[:, :seen].mT)
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                of_query[:, begin:end].baddbmm_(of_scores, keys[:, :seen], beta=0, alpha=scale)
                of_keys[:, :seen].baddbmm_(of_scores.mT, query[:, begin:end], alpha=scale)
            _give(of_key, of_keys, sequence)
            _give(of_value, of_values, sequence)
        return of_query, of_key, of_value, None, None


def _taken(values: Tensor, sequence: Sequence) -> Tensor:
    """What the sequence's keys hold, of values [H, N, D]: its prompt's, then its own."""
    prompt, own = (values[:, slice(*places)] for places in sequence)
    return torch.cat([prompt, own], dim=1)


def _give(gradient: Tensor, of_keys: Tensor, sequence: Sequence) -> None:
    """Add the gradient of what was taken to that of where it was taken."""
    prompt, own = (gradient[:, slice(*places)] for places in sequence)
    prompt += of_keys[:, : prompt.shape[1]]
    own += of_keys[:, prompt.shape[1] :]


@functools.cache
def _hidden(size: int, dtype: torch.dtype) -> Tensor:
    """What hides a query's later ones from it: minus infinity above the diagonal."""
    return torch.full((size, size), float("-inf"), dtype=dtype).triu(1)
