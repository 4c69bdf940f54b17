"""Attention over sequences of different lengths, one per response, instead of rows under a mask.

The first response continues its prompt, [P | R1]. Each further response is a sequence of its own queries over the
prompt's keys and values and its own, with the causal diagonal at the bottom right. Keys and values of a prompt are thus
gathered K times, and no product is computed that the mask would hide. The gradient of what is gathered several times is
summed in a fixed order, so it is deterministic on CUDA, unlike `index_add`.

Shapes: R rows of L tokens, N = R L places of the grid of packed rows; T queries; S keys; H heads of D.
"""

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prefdag.models.ops.device import to_device


class Sequence(NamedTuple):
    """Places [begin, end) of the grid: each query sees the prompt and the queries' places up to its own.

    The first response continues its prompt: its queries include the prompt's places, and `prompt` is empty.
    """

    prompt: tuple[int, int]
    queries: tuple[int, int]


def sequences(comparison: NDArray[np.int64], response: NDArray[np.int64]) -> list[Sequence]:
    """Return one sequence per response, in order; comparison, response: as in `Segments`, [R, L]."""
    places = np.flatnonzero(comparison.ravel() >= 0)
    owner, part = comparison.ravel()[places], response.ravel()[places]
    begins = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(part, prepend=0) != 0) & (part > 1))
    result, prompt = [], (0, 0)
    for begin, end in zip(begins, np.append(begins[1:], len(places)), strict=True):
        queries = (int(places[begin]), int(places[end - 1]) + 1)
        if part[begin] == 0:
            prompt = (queries[0], queries[0] + int((part[begin:end] == 0).sum()))
        result.append(Sequence(prompt if part[begin] else (queries[0], queries[0]), queries))
    return result


@dataclass(frozen=True)
class Gather:
    """A gather of places, some of them several times, with a deterministic gradient.

    places [T]: the place of each gathered row; copies [C, N]: of each place the rows gathered from it, T if fewer.
    """

    places: Tensor
    copies: Tensor

    @classmethod
    def of(cls, places: NDArray[np.int64], num_places: int) -> Self:
        order = np.argsort(places, kind="stable")
        first = np.searchsorted(places[order], places[order])
        turn = np.arange(len(places)) - first  # how many earlier rows come from the same place
        copies = np.full((turn.max() + 1, num_places), len(places), dtype=np.int64)
        copies[turn, places[order]] = order
        return cls(torch.from_numpy(places), torch.from_numpy(copies))

    def __call__(self, values: Tensor) -> Tensor:
        """Gather rows of values: [N, ...] -> [T, ...]."""
        rows: Tensor = _Gather.apply(values, self.places, self.copies)
        return rows

    def to(self, device: torch.device) -> Self:
        return type(self)(to_device(self.places, device), to_device(self.copies, device))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, copies: Tensor) -> Tensor:
        ctx.save_for_backward(copies)
        return values.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (copies,) = ctx.saved_tensors
        padded = torch.cat([grad, grad.new_zeros(1, *grad.shape[1:])])
        total = padded.index_select(0, copies[0])
        if len(copies) > 1:
            total = total.to(torch.promote_types(total.dtype, torch.float32))
        for rows in copies[1:]:
            total += padded.index_select(0, rows)
        return total.to(grad.dtype), None, None


@dataclass(frozen=True)
class VarlenLayout:
    """The sequences of a micro-batch, as a varlen kernel takes them.

    queries, keys: gather the grid's places into sequences, [T] and [S] rows. query_starts, key_starts: offsets of the
    sequences in these, and the end of the last, [sequences + 1] int32. longest: tokens of the longest sequence of
    queries, and of keys.
    """

    queries: Gather
    keys: Gather
    query_starts: Tensor
    key_starts: Tensor
    longest: tuple[int, int]

    @classmethod
    def of(cls, sequences: list[Sequence], num_places: int) -> Self:
        queries = [np.arange(*each.queries) for each in sequences]
        keys = [np.concatenate([np.arange(*each.prompt), q]) for each, q in zip(sequences, queries, strict=True)]
        sizes = [np.array([len(each) for each in parts]) for parts in (queries, keys)]
        starts = [torch.from_numpy(np.append(0, size.cumsum()).astype(np.int32)) for size in sizes]
        gathers = [Gather.of(np.concatenate(parts), num_places) for parts in (queries, keys)]
        return cls(gathers[0], gathers[1], starts[0], starts[1], (int(sizes[0].max()), int(sizes[1].max())))

    def to(self, device: torch.device) -> Self:
        starts = to_device(self.query_starts, device), to_device(self.key_starts, device)
        return type(self)(self.queries.to(device), self.keys.to(device), *starts, self.longest)


def attend_varlen(query: Tensor, key: Tensor, value: Tensor, layout: VarlenLayout, scale: float | None) -> Tensor:
    """Return causal attention within each sequence.

    Args:
        query: [R, H, L, D].
        key, value: [R, H / groups, L, D].
        layout: the sequences of the grid's R x L places.
        scale: factor on the scores; None: D^-0.5.

    Returns:
        [R, L, H, D], zeros at padding.
    """
    rows, heads, length, size = query.shape
    flat = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
    attend = attend_flash if query.is_cuda else attend_loop
    out = attend(layout.queries(flat[0]), layout.keys(flat[1]), layout.keys(flat[2]), layout, scale)
    grid = out.new_zeros(rows * length, heads, size)
    return grid.index_copy(0, layout.queries.places, out).view(rows, length, heads, size)


def attend_flash(query: Tensor, key: Tensor, value: Tensor, layout: VarlenLayout, scale: float | None) -> Tensor:
    """Attend by FlashAttention, on CUDA in half precision: query [T, H, D], key and value [S, H / groups, D]."""
    from torch.nn.attention.varlen import varlen_attn  # lazy: 54 ms that only CUDA needs

    starts = layout.query_starts, layout.key_starts
    # torch 2.11 lacks this argument; whether its grouped heads are right anyway is checked at first use (`check`).
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    # window_size (-1, 0) is causal. Its diagonal must be at the bottom right; `check` refuses a kernel that differs.
    out = varlen_attn(query, key, value, *starts, *layout.longest, scale=scale, window_size=(-1, 0), **grouped)
    assert isinstance(out, Tensor)
    return out


def attend_loop(query: Tensor, key: Tensor, value: Tensor, layout: VarlenLayout, scale: float | None) -> Tensor:
    """Do as `attend_flash` in plain arithmetic, sequence by sequence [T, H, D]: the reference for tests."""
    sizes = [starts.diff().tolist() for starts in (layout.query_starts, layout.key_starts)]
    parts = []
    for q, k, v in zip(query.split(sizes[0]), key.split(sizes[1]), value.split(sizes[1]), strict=True):
        mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)
