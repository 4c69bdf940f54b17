"""Comparisons packed as segments: [P | R1 | ... | RK], the prompt once.

Each response attends to its prompt and to itself, never to a sibling or to another comparison; its positions continue
from the prompt's. The hidden state of the prompt's last token predicts the first token of every response.

Shapes: B comparisons of K responses in R rows of L tokens; T response tokens in all.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefdag.data.token_store import Comparison
from prefdag.models.ops import varlen
from prefdag.models.ops.device import to_device
from prefdag.seeds import generator

PADDING = -1
Lengths = NDArray[np.int64] | Mapping[int, int]  # tokens of each comparison


class TokenPlan(NamedTuple):
    """Hidden states to read, each computed once.

    places [U]: the different flat positions (row * L + column), ascending; reader [T]: of each reader the index in
    `places` that it reads.
    """

    places: Tensor
    reader: Tensor

    @classmethod
    def of(cls, places: Tensor) -> Self:
        return cls(*torch.unique(places, return_inverse=True))


@dataclass(frozen=True)
class Segments:
    """A micro-batch of comparisons, ready for one forward pass.

    Response tokens are ordered by comparison, as passed to `pack`; packing does not change the order.

    Attributes:
        tokens, positions: [R, L].
        comparison: [R, L], the index of each token's comparison, PADDING for none.
        response: [R, L], 0 for the prompt, k for the k-th response.
        predictor: [U], flat position (row * L + column) of the hidden state that predicts each computed token.
        target: [U], each computed response token.
        owner: [T], the response of each response token as b * K + k.
        last: [B, K], flat position of each response's last token.
        copies: [T], index in [U] of each response token, if responses are repeated (`prefdag.models.repeats`);
            `comparison` and `response` are then those of the packed prompts with their different responses.
            None: U = T, each token is computed.
    """

    tokens: Tensor
    positions: Tensor
    comparison: Tensor
    response: Tensor
    predictor: Tensor
    target: Tensor
    owner: Tensor
    last: Tensor
    copies: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, K)."""
        return self.last.shape[0], self.last.shape[1]

    @cached_property
    def packed_shape(self) -> tuple[int, int]:
        """Return the number of packed prompts, and of the most responses of one; (B, K) without copies."""
        return self.shape if self.copies is None else (int(self.comparison.max()) + 1, int(self.response.max()))

    def of_responses(self, values: Tensor) -> Tensor:
        """Return values of computed tokens [U] as those of the response tokens [T]."""
        return values if self.copies is None else values.index_select(0, self.copies)

    @cached_property
    def padded_row(self) -> Tensor:
        """Return of each token the number of its response among the packed ones, a prompt's its first's: [R, L]."""
        return self.comparison * self.packed_shape[1] + (self.response - 1).clamp(min=0)

    @cached_property
    def mask(self) -> Tensor:
        """Return which tokens each token may see: [R, 1, L (query), L (key)] bool."""
        length = self.tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.tokens.device).tril()
        same_comparison = self.comparison[:, :, None] == self.comparison[:, None, :]
        of_prompt = self.response[:, None, :] == 0
        same_response = self.response[:, :, None] == self.response[:, None, :]
        return (same_comparison & causal & (of_prompt | same_response))[:, None]

    @cached_property
    def reach(self) -> int:
        """Return the length of the longest prompt with a response."""
        return int(self.positions.max()) + 1

    def windowed(self, window: int | None) -> Tensor:
        """Return `mask` without the tokens that are `window` or more positions back; None: `mask` itself."""
        if window is None or self.reach <= window:
            return self.mask
        distance = self.positions[:, :, None] - self.positions[:, None, :]
        return self.mask & (distance < window)[:, None]

    @cached_property
    def sequences(self) -> list[varlen.Sequence]:
        """Return the same attention as one sequence per response."""
        return varlen.sequences(self.comparison.cpu().numpy(), self.response.cpu().numpy())

    @cached_property
    def varlen_layout(self) -> varlen.VarlenLayout:
        """Return the sequences as a varlen kernel takes them."""
        return varlen.VarlenLayout.of(self.sequences, self.tokens.numel()).to(self.tokens.device)

    @cached_property
    def predicting(self) -> TokenPlan:
        """Return the hidden states that predict response tokens; the readers are the computed ones [U]."""
        return TokenPlan.of(self.predictor)

    @cached_property
    def ending(self) -> TokenPlan:
        """Return the hidden states of the responses' last tokens; the readers are the responses [B * K]."""
        return TokenPlan.of(self.last.flatten())

    def to(self, device: torch.device) -> Self:
        """Copy to a device. On CUDA, also compute what would otherwise make the process wait for the GPU later."""
        tensors = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved = type(self)(**{name: to_device(one, device) for name, one in tensors.items() if one is not None})
        if device.type == "cuda":
            moved.__dict__["reach"], moved.__dict__["packed_shape"] = self.reach, self.packed_shape
            moved.__dict__["varlen_layout"] = self.varlen_layout.to(device)
            for name in ("predicting", "ending"):
                moved.__dict__[name] = TokenPlan(*(to_device(part, device) for part in getattr(self, name)))
        return moved


def pack(
    comparisons: Sequence[Comparison],
    rows: Sequence[Sequence[int]] | None = None,
    reads: NDArray[np.int64] | None = None,
) -> Segments:
    """Pack comparisons into padded rows.

    Args:
        comparisons: all of the same K, unless `reads` is passed.
        rows: of each row the comparisons in it, as indices; by default each comparison has its own row.
        reads: [B, K], the responses of the micro-batch's comparisons, as indices into those of `comparisons`
            together; by default each response is read once, in order.
    """
    rows = [[index] for index in range(len(comparisons))] if rows is None else rows
    assert sorted(index for row in rows for index in row) == list(range(len(comparisons)))
    lengths = [num_tokens(c) for c in comparisons]
    width = max(sum(lengths[index] for index in row) for row in rows)
    grid = np.zeros((4, len(rows), width), dtype=np.int64)  # tokens, positions, comparison, response
    grid[2] = PADDING
    start = np.zeros(len(comparisons), dtype=np.int64)  # flat position of each comparison's first token
    for number, row in enumerate(rows):
        column = 0
        for index in row:
            end = column + lengths[index]
            grid[:, number, column:end] = _fill(comparisons[index], index)
            start[index] = number * width + column
            column = end
    parts = [_response_tokens(c, int(start[index])) for index, c in enumerate(comparisons)]
    predictor, target, last = (np.concatenate([part[number] for part in parts]) for number in range(3))
    sizes = np.array([len(response) for comparison in comparisons for response in comparison.responses])
    copies = None
    if reads is None:
        reads = np.arange(len(sizes)).reshape(len(comparisons), -1)
    else:
        begins = np.cumsum(sizes) - sizes
        copies = torch.from_numpy(np.concatenate([begins[one] + np.arange(sizes[one]) for one in reads.flat]))
    owner = np.repeat(np.arange(reads.size), sizes[reads.ravel()])
    tensors = map(torch.from_numpy, [*grid, predictor, target, owner, last[reads]])
    return Segments(*tensors, *([] if copies is None else [copies]))


def num_tokens(comparison: Comparison) -> int:
    """Return the tokens of a packed comparison: the prompt once and every response."""
    return len(comparison.prompt) + sum(map(len, comparison.responses))


def _fill(comparison: Comparison, index: int) -> np.ndarray:
    """Return tokens, positions, comparison and response number of one comparison's tokens: [4, length]."""
    prompt = len(comparison.prompt)
    sizes = [len(response) for response in comparison.responses]
    positions = np.concatenate([np.arange(prompt), *(prompt + np.arange(size) for size in sizes)])
    response = np.repeat(np.arange(len(sizes) + 1), [prompt, *sizes])
    tokens = np.concatenate([comparison.prompt, *comparison.responses])
    return np.stack([tokens, positions, np.full_like(positions, index), response])


def _response_tokens(comparison: Comparison, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return predictor and target of a comparison's response tokens, and its responses' last tokens [K]."""
    branch = start + len(comparison.prompt) - 1  # the prompt's last token predicts every response's first
    predictors, lasts, at = [], [], branch + 1
    for response in comparison.responses:
        predictors += [np.array([branch]), np.arange(at, at + len(response) - 1)]
        at += len(response)
        lasts.append(at - 1)
    return np.concatenate(predictors), np.concatenate(comparison.responses).astype(np.int64), np.array(lasts)


def num_steps(num_comparisons: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Return the number of optimizer steps of a training: `max_steps` if stated (as in Transformers), else epochs."""
    if max_steps is not None:
        return max_steps
    # Rounded first: 0.07 epochs of 100 steps are 7.000000000000001.
    return math.ceil(round(epochs * math.ceil(num_comparisons / batch_size), 9))


def step_members(step: int, num_comparisons: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Return the comparisons of optimizer step `step` (from 0): a slice of its epoch's permutation.

    An epoch has the fewest steps that hold at most `batch_size` comparisons each, and their sizes differ by one at
    most. A short last step would weigh each of its comparisons, and their noise, as much as a whole step's.
    """
    per_epoch = math.ceil(num_comparisons / batch_size)
    epoch, place = divmod(step, per_epoch)
    size, larger = divmod(num_comparisons, per_epoch)  # the first `larger` steps have one comparison more
    begin = place * size + min(place, larger)
    return _order(epoch, num_comparisons, seed)[begin : begin + size + (place < larger)]


@functools.lru_cache(maxsize=2)  # once an epoch, not once a step: 30 ms for 1.6 million comparisons
def _order(epoch: int, num_comparisons: int, seed: int) -> NDArray[np.int64]:
    order = generator(seed, "order", epoch).permutation(num_comparisons)
    order.setflags(write=False)
    return order


def deal(ids: Sequence[int], lengths: Lengths, processes: int) -> list[list[int]]:
    """Share out a step's comparisons: the longest first, each to the process with the fewest tokens so far."""
    shares: list[list[int]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for index in sorted(ids, key=lambda index: (-lengths[index], index)):
        least = tokens.index(min(tokens))
        shares[least].append(int(index))
        tokens[least] += int(lengths[index])
    return shares


def micro_batches(
    ids: Sequence[int], lengths: Lengths, tokens_per_batch: int
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Plan micro-batches of at most `tokens_per_batch` padded tokens, the longest comparisons first.

    Args:
        ids: the comparisons to plan.
        lengths: tokens of every comparison of the store.
        tokens_per_batch: rows times the longest row. A longer comparison has a micro-batch to itself.

    Yields:
        The micro-batch's ids, and its rows as indices into these ids.
    """
    waiting = sorted((int(index) for index in ids), key=lambda index: (-lengths[index], index))
    while waiting:
        width = int(lengths[waiting[0]])
        free = [width] * max(1, tokens_per_batch // width)
        rows: list[list[int]] = [[] for _ in free]
        members: list[int] = []
        left: list[int] = []
        for index in waiting:
            length = int(lengths[index])
            row = next((row for row, room in enumerate(free) if room >= length), None)
            if row is None:
                left.append(index)
                continue
            free[row] -= length
            rows[row].append(len(members))
            members.append(index)
        yield members, [row for row in rows if row]
        waiting = left
