"""Per-token quantities of whole distributions, beside the log-probs of one forward pass.

As in `prefdag.models.logprobs` only response positions reach the output heads, in chunks sized by bytes.

Shapes: T response tokens, D dimensions of a hidden state, V tokens of the vocabulary.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prefdag.models.logprobs import CHUNK_BYTES, LogProbs, chunks, head_of, hidden_states, logprobs
from prefdag.models.packing import Segments

PER_TOKEN = frozenset({"collision", "divergence"})
Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TokenStats:
    """A policy's log-probs, and what else was asked of every response token: name -> [T]."""

    policy: LogProbs
    extras: dict[str, Tensor]


def token_stats(
    model: PreTrainedModel,
    segments: Segments,
    wanted: Set[str] = frozenset(),
    reference: PreTrainedModel | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> TokenStats:
    """Log-probs and the `wanted` of PER_TOKEN, from one forward pass of the policy.

    collision: log sum_v p_v^2 under the policy, detached (Zhou et al. 2024, eq. 2). divergence: KL(reference || policy)
    over the vocabulary in nats, with gradient through the policy (Zeng et al. 2024, eq. 7); `reference` must be given.
    """
    if not wanted:
        return TokenStats(logprobs(model, segments), {})
    states = hidden_states(model, segments, segments.predicting)
    others = None
    if "divergence" in wanted:
        assert reference is not None
        with torch.no_grad():
            others = hidden_states(reference, segments, segments.predicting)
    names = sorted(wanted)
    other_head = None if reference is None else head_of(reference)
    values = _token_values(states, segments.target, head_of(model), names, others, other_head, chunk_bytes)
    policy = LogProbs(values[0], segments.owner, segments.shape)
    return TokenStats(policy, dict(zip(names, values[1:], strict=True)))


def _token_values(
    states: Tensor,
    target: Tensor,
    head: Head,
    names: list[str],
    others: Tensor | None,
    other_head: Head | None,
    chunk_bytes: int,
) -> list[Tensor]:
    """Log-probs of `target` [T] and the quantities named, each [T], from states [T, D] and the reference's [T, D].

    When more than one chunk is needed, each one's logits are recomputed in the backward pass rather than kept.
    """

    def of_chunk(states: Tensor, target: Tensor, others: Tensor | None) -> tuple[Tensor, ...]:
        p = head(states).log_softmax(-1)
        values = [p.gather(-1, target[:, None]).squeeze(-1)]
        for name in names:
            if name == "collision":
                values.append((2 * p.detach()).logsumexp(-1))
            else:
                assert others is not None and other_head is not None
                with torch.no_grad():
                    q = other_head(others).log_softmax(-1)
                values.append((q.exp() * (q - p)).sum(-1))
        return tuple(values)

    width = head(states[:1].detach()).shape[-1]
    parts = list(chunks(len(target), (1 + len(names)) * width, chunk_bytes))
    recompute = len(parts) > 1 and torch.is_grad_enabled()
    found: list[list[Tensor]] = [[] for _ in range(1 + len(names))]
    for part in parts:
        given = states[part], target[part], None if others is None else others[part]
        values = checkpoint(of_chunk, *given, use_reentrant=False) if recompute else of_chunk(*given)
        for column, value in zip(found, values, strict=True):
            column.append(value)
    return [torch.cat(column) for column in found]
