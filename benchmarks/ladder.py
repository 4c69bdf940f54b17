"""The rungs between the plain padded path and the product, one thing changed at a time.

Each rung gives the `LogProbs` of one optimizer step's pairs, a micro-batch at a time; `benchmarks.micro --rung`
trains on it. All compute the same numbers; tests hold that.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.data.token_store import Comparison
from prefdag.models.logprobs import LogProbs, head_of, logprobs, token_logprobs
from prefdag.models.naive import padded_rows
from prefdag.models.packing import Segments, micro_batches, num_tokens, pack

Parts = Iterator[tuple[list[int], LogProbs]]  # places in the step, and their log-probs with K = 2
Rung = Callable[[PreTrainedModel, Sequence[Comparison], int], Parts]
WHOLE = 1 << 60  # bytes of a chunk that is never cut


def naive(model: PreTrainedModel, step: Sequence[Comparison], tokens_per_batch: int) -> Parts:
    """The whole step padded to its longest row, every position's logits."""
    yield list(range(len(step))), _padded(model, step, everywhere=True, mask=True)


def sorted_(model: PreTrainedModel, step: Sequence[Comparison], tokens_per_batch: int) -> Parts:
    """Pairs of like length together, right-padded, so that the causal kernel needs no mask."""
    for taken in _of_like_length(step, tokens_per_batch):
        yield taken, _padded(model, [step[place] for place in taken], everywhere=True, mask=False)


def completion(model: PreTrainedModel, step: Sequence[Comparison], tokens_per_batch: int) -> Parts:
    """Only response positions reach the head."""
    for taken in _of_like_length(step, tokens_per_batch):
        yield taken, _padded(model, [step[place] for place in taken], everywhere=False, mask=False)


def packed(model: PreTrainedModel, step: Sequence[Comparison], tokens_per_batch: int) -> Parts:
    """Several responses to a row, each behind a prompt of its own; head in chunks, recomputed."""
    for taken in _of_like_length(step, tokens_per_batch):
        alone = [Comparison(step[place].prompt, (response,)) for place in taken for response in step[place].responses]
        yield taken, _paired(_chunked(model, _segments(alone, tokens_per_batch)), len(taken))


def shared(model: PreTrainedModel, step: Sequence[Comparison], tokens_per_batch: int) -> Parts:
    """The prompt once; head in chunks, recomputed."""
    for taken, segments in _micro_batches(step, tokens_per_batch):
        yield taken, _chunked(model, segments)


def fused(model: PreTrainedModel, step: Sequence[Comparison], tokens_per_batch: int) -> Parts:
    """The product: the prompt once, logits turned into their own gradient in place."""
    for taken, segments in _micro_batches(step, tokens_per_batch):
        yield taken, logprobs(model, segments)


RUNGS: dict[str, Rung] = {
    "naive": naive,
    "sorted": sorted_,
    "completion": completion,
    "packed": packed,
    "shared": shared,
    "fused": fused,
}


def _micro_batches(step: Sequence[Comparison], tokens_per_batch: int) -> Iterator[tuple[list[int], Segments]]:
    lengths = np.array([num_tokens(comparison) for comparison in step])
    for taken, rows in micro_batches(range(len(step)), lengths, tokens_per_batch):
        yield taken, pack([step[place] for place in taken], rows)


def _segments(comparisons: Sequence[Comparison], tokens_per_batch: int) -> Segments:
    """All of them in one micro-batch, several to a row."""
    lengths = np.array([num_tokens(comparison) for comparison in comparisons])
    total = int(lengths.sum())
    taken, rows = next(iter(micro_batches(range(len(comparisons)), lengths, max(tokens_per_batch, 4 * total))))
    order = {place: number for number, place in enumerate(taken)}
    assert len(order) == len(comparisons)
    return pack(comparisons, [[taken[number] for number in row] for row in rows])


def _of_like_length(step: Sequence[Comparison], tokens_per_batch: int) -> Iterator[list[int]]:
    """Places in the step, longest first, as many at a time as the padded tokens of both responses allow."""
    width = [len(c.prompt) + max(map(len, c.responses)) for c in step]
    waiting = sorted(range(len(step)), key=lambda place: -width[place])
    while waiting:
        size = max(1, tokens_per_batch // (2 * width[waiting[0]]))
        yield waiting[:size]
        waiting = waiting[size:]


def _padded(model: PreTrainedModel, comparisons: Sequence[Comparison], everywhere: bool, mask: bool) -> LogProbs:
    """Log-probs from rows of one prompt and one response each, by transformers' own attention."""
    tokens, attention, counted = padded_rows(comparisons)
    out = model.base_model(input_ids=tokens, attention_mask=attention if mask else None, use_cache=False)
    states, is_counted = out.last_hidden_state[:, :-1], counted[:, 1:]
    if everywhere:
        logits = head_of(model)(states)
        values = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)[is_counted]
    else:
        values = token_logprobs(states[is_counted], tokens[:, 1:][is_counted], head_of(model), WHOLE)
    owner = torch.arange(len(tokens))[:, None].expand_as(is_counted)[is_counted]
    return LogProbs(values, owner, (len(comparisons), 2))


def _chunked(model: PreTrainedModel, segments: Segments) -> LogProbs:
    out = model.base_model(
        input_ids=segments.tokens, position_ids=segments.positions, segments=segments, use_cache=False
    )
    states = out.last_hidden_state.flatten(0, 1).index_select(0, segments.predictor)
    return LogProbs(token_logprobs(states, segments.target, head_of(model)), segments.owner, segments.shape)


def _paired(alone: LogProbs, num_pairs: int) -> LogProbs:
    """Responses one by one, in the order of the pairs, as pairs: [2 B, 1] -> [B, 2]."""
    return LogProbs(alone.tokens, alone.owner, (num_pairs, 2))


def trained(
    model: PreTrainedModel,
    steps: Sequence[Sequence[Comparison]],
    references: Sequence[Sequence[Tensor]],
    loss: Callable[..., Tensor],
    rung: str,
    tokens_per_batch: int,
    learning_rate: float,
) -> Iterator[tuple[float, float]]:
    """Train on `steps` by one rung, yielding each step's loss and its gradient's norm before it is clipped.

    references: of each pair of each step, the reference's log-probs, [n_w + n_l].
    """
    if rung in ("naive", "sorted", "completion"):
        model.set_attn_implementation("sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    for step, reference in zip(steps, references, strict=True):
        total = 0.0
        for taken, policy in RUNGS[rung](model, step, tokens_per_batch):
            fixed = LogProbs(torch.cat([reference[place] for place in taken]), policy.owner, policy.shape)
            part = loss(policy, reference=fixed).sum() / len(step)
            part.backward()
            total += part.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield total, norm.item()
