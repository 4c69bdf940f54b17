"""Per-token statistics of whole distributions, from the same forward pass as the log-probs.

As in `prefdag.models.logprobs`, only response positions reach the output heads, in chunks sized by bytes.

Shapes: T response tokens; D hidden size; V vocabulary.
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
    """A policy's log-probs, and further statistics of every response token: name -> [T]."""

    policy: LogProbs
    extras: dict[str, Tensor]


def token_stats(
    model: PreTrainedModel,
    segments: Segments,
    wanted: Set[str] = frozenset(),
    reference: PreTrainedModel | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> TokenStats:
    """Compute log-probs and statistics of every response token in one forward pass of the policy.

    Args:
        model: the policy.
        segments: a micro-batch.
        wanted: names of PER_TOKEN. collision: log sum_v p_v^2 under the policy, detached. divergence: KL(reference ||
            policy) over the vocabulary in nats, with gradient to the policy.
        reference: the reference policy, for the divergence.
        chunk_bytes: memory for float32 logits.

    Reference: Zhou et al. 2024, eq. 2 (collision); Zeng et al. 2024, eq. 7 (divergence).
    """
    if not wanted:
        return TokenStats(logprobs(model, segments), {})
    states = hidden_states(model, segments, segments.predicting)
    reference_states = None
    if "divergence" in wanted:
        assert reference is not None
        with torch.no_grad():
            reference_states = hidden_states(reference, segments, segments.predicting)
    names = sorted(wanted)
    reference_head = None if reference is None else head_of(reference)
    computed = _token_values(
        states, segments.target, head_of(model), names, reference_states, reference_head, chunk_bytes
    )
    values = [segments.of_responses(value) for value in computed]
    policy = LogProbs(values[0], segments.owner, segments.shape)
    return TokenStats(policy, dict(zip(names, values[1:], strict=True)))


def _token_values(
    states: Tensor,
    target: Tensor,
    head: Head,
    names: list[str],
    reference_states: Tensor | None,
    reference_head: Head | None,
    chunk_bytes: int,
) -> list[Tensor]:
    """Return log-probs of `target` [T] and the named statistics, each [T], from hidden states [T, D].

    If there is more than one chunk, each one's logits are recomputed in the backward pass instead of saved.
    """

    def of_chunk(states: Tensor, target: Tensor, reference_states: Tensor | None) -> tuple[Tensor, ...]:
        p = head(states).log_softmax(-1)  # very large tensor: chunk x V
        values = [p.gather(-1, target[:, None]).squeeze(-1)]
        for name in names:
            if name == "collision":
                values.append((2 * p.detach()).logsumexp(-1))
            else:
                assert reference_states is not None and reference_head is not None
                with torch.no_grad():
                    q = reference_head(reference_states).log_softmax(-1)
                values.append((q.exp() * (q - p)).sum(-1))
        return tuple(values)

    width = head(states[:1].detach()).shape[-1]
    parts = list(chunks(len(target), (1 + len(names)) * width, chunk_bytes))
    recompute = len(parts) > 1 and torch.is_grad_enabled()
    columns: list[list[Tensor]] = [[] for _ in range(1 + len(names))]
    for part in parts:
        inputs = states[part], target[part], None if reference_states is None else reference_states[part]
        values = checkpoint(of_chunk, *inputs, use_reentrant=False) if recompute else of_chunk(*inputs)
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return [torch.cat(column) for column in columns]
