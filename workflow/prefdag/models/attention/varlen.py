"""Attention with every response apart: sequences of different lengths instead of rows and a mask.

The first response continues its prompt, [P | R1]; each further response is a sequence of its own queries over the
prompt's keys and values and its own, the causal diagonal at the last of both. Keys and values of a prompt are thus
taken K times, and nothing is computed that the mask would hide. The gradient of what is taken several times is a sum in
a fixed order.

Shapes: N = R L places of the grid of packed rows; T queries; S keys; H heads of D.
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
    """Places [begin, end) of the grid: the queries' own, each of which sees the prompt's and the own up to itself.

    The first response continues its prompt, so that there `prompt` is empty.
    """

    prompt: tuple[int, int]
    own: tuple[int, int]


def sequences(comparison: NDArray[np.int64], response: NDArray[np.int64]) -> list[Sequence]:
    """One for each response, in order; comparison, response: as in `Segments`, [R, L]."""
    places = np.flatnonzero(comparison.ravel() >= 0)
    whose, part = comparison.ravel()[places], response.ravel()[places]
    begins = np.flatnonzero((np.diff(whose, prepend=-1) != 0) | (np.diff(part, prepend=0) != 0) & (part > 1))
    found, prompt = [], (0, 0)
    for begin, end in zip(begins, np.append(begins[1:], len(places)), strict=True):
        own = (int(places[begin]), int(places[end - 1]) + 1)
        if part[begin] == 0:
            prompt = (own[0], own[0] + int((part[begin:end] == 0).sum()))
        found.append(Sequence(prompt if part[begin] else (own[0], own[0]), own))
    return found


@dataclass(frozen=True)
class Gather:
    """Which places of the grid are taken, in order: places [T]; copies [C, N]: each place's takings, T where there is
    none."""

    places: Tensor
    copies: Tensor

    @classmethod
    def of(cls, places: NDArray[np.int64], num_places: int) -> Self:
        order = np.argsort(places, kind="stable")
        first = np.searchsorted(places[order], places[order])
        turn = np.arange(len(places)) - first  # how often the place was taken before
        copies = np.full((turn.max() + 1, num_places), len(places), dtype=np.int64)
        copies[turn, places[order]] = order
        return cls(torch.from_numpy(places), torch.from_numpy(copies))

    def __call__(self, values: Tensor) -> Tensor:
        """Of values [N, ...] those taken: [T, ...]."""
        found: Tensor = _Take.apply(values, self.places, self.copies)
        return found

    def to(self, device: torch.device) -> Self:
        return type(self)(to_device(self.places, device), to_device(self.copies, device))


class _Take(torch.autograd.Function):
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
        for again in copies[1:]:
            total += padded.index_select(0, again)
        return total.to(grad.dtype), None, None


@dataclass(frozen=True)
class VarlenLayout:
    """The sequences of a micro-batch.

    query_starts, key_starts: where each sequence begins among the taken ones, and the end of the last, [sequences + 1]
    int32; longest: tokens of the longest sequence of queries, and of keys.
    """

    queries: Gather
    keys: Gather
    query_starts: Tensor
    key_starts: Tensor
    longest: tuple[int, int]

    @classmethod
    def of(cls, found: list[Sequence], num_places: int) -> Self:
        places = [np.arange(*each.own) for each in found]
        keys = [np.concatenate([np.arange(*each.prompt), own]) for each, own in zip(found, places, strict=True)]
        sizes = [np.array([len(each) for each in parts]) for parts in (places, keys)]
        starts = [torch.from_numpy(np.append(0, size.cumsum()).astype(np.int32)) for size in sizes]
        queries, taken = (Gather.of(np.concatenate(parts), num_places) for parts in (places, keys))
        return cls(queries, taken, starts[0], starts[1], (int(sizes[0].max()), int(sizes[1].max())))

    def to(self, device: torch.device) -> Self:
        starts = to_device(self.query_starts, device), to_device(self.key_starts, device)
        return type(self)(self.queries.to(device), self.keys.to(device), *starts, self.longest)


def attend_varlen(query: Tensor, key: Tensor, value: Tensor, apart: VarlenLayout, scale: float | None) -> Tensor:
    """Attention of query [R, H, L, D] over key and value [R, H / groups, L, D]: [R, L, H, D], zeros at padding."""
    rows, heads, length, size = query.shape
    flat = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
    attend = by_flash if query.is_cuda else one_by_one
    found = attend(apart.queries(flat[0]), apart.keys(flat[1]), apart.keys(flat[2]), apart, scale)
    whole = found.new_zeros(rows * length, heads, size)
    return whole.index_copy(0, apart.queries.places, found).view(rows, length, heads, size)


def by_flash(query: Tensor, key: Tensor, value: Tensor, apart: VarlenLayout, scale: float | None) -> Tensor:
    """FlashAttention over sequences, on CUDA in half precision, the causal diagonal at the bottom right: [T, H, D]."""
    from torch.nn.attention.varlen import varlen_attn  # here, as it takes 54 ms and CUDA alone needs it

    starts = apart.query_starts, apart.key_starts
    # torch 2.11 has no such argument; whether its grouped heads are right anyway is seen at first use (`check`).
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    found = varlen_attn(query, key, value, *starts, *apart.longest, scale=scale, window_size=(-1, 0), **grouped)
    assert isinstance(found, Tensor)
    return found


def one_by_one(query: Tensor, key: Tensor, value: Tensor, apart: VarlenLayout, scale: float | None) -> Tensor:
    """The same in plain arithmetic, sequence by sequence: for tests, and to compare with."""
    sizes = [starts.diff().tolist() for starts in (apart.query_starts, apart.key_starts)]
    found = []
    for q, k, v in zip(query.split(sizes[0]), key.split(sizes[1]), value.split(sizes[1]), strict=True):
        mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        found.append(out[0].transpose(0, 1))
    return torch.cat(found)
