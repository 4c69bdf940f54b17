"""Repeated responses: one that several comparisons of a step, or of a pass over a store, share is computed once.

With K samples for each prompt and all their pairs, a response occurs in K - 1 pairs. Such comparisons become one packed
prompt with its different responses, [P | R1 | ... | RM], and each comparison reads (gathers) the log-probs of its own.
Loss and gradients are those of the plain packing; without a repeated response the packing is the plain one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefdag.data.token_store import Comparison, Indexed
from prefdag.models.packing import Segments, micro_batches, num_tokens, pack

BLOCK = 1024  # comparisons sorted by length together, outside training


@dataclass(frozen=True)
class Group:
    """Comparisons of one prompt that share responses.

    ids: the comparisons, ascending. packed: the prompt with its different responses. reads: of each comparison its K
    responses, as indices into those of `packed`.
    """

    ids: list[int]
    packed: Comparison
    reads: list[list[int]]


def repeat_groups(ids: Sequence[int], store: Indexed, max_tokens: int) -> dict[int, Group]:
    """Group the comparisons of a step that share responses, by the group's smallest id.

    Args:
        ids: the comparisons, in any order.
        store: where to read them.
        max_tokens: most tokens of a packed group; comparisons that share more are split into several.
    """
    comparisons = {index: store[index] for index in sorted(ids)}
    groups = [
        _group(part, comparisons) for linked in _linked(comparisons) for part in _parts(linked, comparisons, max_tokens)
    ]
    return {group.ids[0]: group for group in groups}


def pack_groups(groups: Sequence[Group], rows: Sequence[Sequence[int]]) -> tuple[list[int], Segments]:
    """Pack groups into padded rows, as `pack`; return the micro-batch's comparisons too.

    rows: of each row the groups in it, as indices.
    """
    ids = [index for group in groups for index in group.ids]
    packed = [group.packed for group in groups]
    reads, begin, is_repeated = list[list[int]](), 0, False
    for group in groups:
        reads += [[begin + response for response in one] for one in group.reads]
        begin += len(group.packed.responses)
        is_repeated |= len(group.packed.responses) < sum(map(len, group.reads))
    return ids, pack(packed, rows, np.array(reads) if is_repeated else None)


def iter_packed(comparisons: Indexed, tokens_per_batch: int) -> Iterator[tuple[list[int], Segments]]:
    """Yield every comparison once, as (indices, micro-batch).

    A block is grouped and sorted at a time, so that planning stays linear; repeats are sought within a block.
    """
    for begin in range(0, len(comparisons), BLOCK):
        ids = range(begin, min(begin + BLOCK, len(comparisons)))
        groups = repeat_groups(ids, comparisons, tokens_per_batch)
        sizes = {first: num_tokens(group.packed) for first, group in groups.items()}
        for firsts, rows in micro_batches(list(groups), sizes, tokens_per_batch):
            yield pack_groups([groups[first] for first in firsts], rows)


def _linked(comparisons: dict[int, Comparison]) -> Iterable[list[int]]:
    """Return the comparisons that are linked by equal responses to an equal prompt, directly or through others."""
    label = {index: index for index in comparisons}
    members = {index: [index] for index in comparisons}
    first = dict[Any, int]()  # a prompt with a response -> the first comparison that has it
    for index, comparison in comparisons.items():
        prompt = comparison.prompt.tobytes()
        for response in comparison.responses:
            other = label[first.setdefault((prompt, response.tobytes()), index)]
            if (this := label[index]) != other:
                this, other = max(this, other), min(this, other)
                for member in members[this]:
                    label[member] = other
                members[other] += members.pop(this)
    return (sorted(part) for part in members.values())


def _parts(ids: list[int], comparisons: dict[int, Comparison], max_tokens: int) -> Iterable[list[int]]:
    """Cut linked comparisons into parts of at most `max_tokens` different tokens; a longer comparison is alone."""
    part, seen, total = list[int](), set[bytes](), 0
    for index in ids:
        sizes = {response.tobytes(): len(response) for response in comparisons[index].responses}
        more = sum(size for key, size in sizes.items() if key not in seen)
        if part and total + more > max_tokens:
            yield part
            part, seen, total = [], set(), 0
            more = sum(sizes.values())
        if not part:
            total = len(comparisons[index].prompt)
        part.append(index)
        seen |= sizes.keys()
        total += more
    yield part


def _group(ids: list[int], comparisons: dict[int, Comparison]) -> Group:
    place, responses, reads = dict[bytes, int](), list[NDArray[np.int32]](), list[list[int]]()
    for index in ids:
        for response in comparisons[index].responses:
            if response.tobytes() not in place:
                place[response.tobytes()] = len(responses)
                responses.append(response)
        reads.append([place[response.tobytes()] for response in comparisons[index].responses])
    return Group(ids, Comparison(comparisons[ids[0]].prompt, tuple(responses)), reads)
