"""Log-probs of responses: from hidden states to per-token values, totals and counts.

Only response positions reach the output head, in chunks sized by bytes, with the log-sum-exp in float32 or better.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prefdag.models.attention.interface import NAME
from prefdag.models.ops.device import at_least_float32
from prefdag.models.ops.vocabulary import embed, target_logprobs
from prefdag.models.packing import Segments, TokenPlan

CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class LogProbs:
    """Log-probs of B x K responses.

    tokens [T]: one value per response token, in nats; owner [T]: its response as b * K + k; shape: (B, K).
    """

    tokens: Tensor
    owner: Tensor
    shape: tuple[int, int]

    @property
    def total(self) -> Tensor:
        """Summed log-prob of each response: [B, K]."""
        return self.summed(self.tokens)

    @property
    def count(self) -> Tensor:
        """Counted tokens of each response, as floats: [B, K]."""
        return self.summed(torch.ones_like(self.tokens))

    @property
    def position(self) -> Tensor:
        """Place of every token in its response, from 0: [T]. The tokens of a response are contiguous and in order."""
        starts = torch.searchsorted(self.owner, self.owner)
        return torch.arange(len(self.owner), device=self.owner.device) - starts

    @property
    def mean(self) -> Tensor:
        """Average log-prob of each response's tokens: [B, K]."""
        return self.total / self.count

    def __sub__(self, other: Self) -> Self:
        """Log-ratios. Subtracted per token: float32 sums near -3,700 are 2.4e-4 apart, their differences are not."""
        assert self.shape == other.shape and self.tokens.shape == other.tokens.shape
        return type(self)(self.tokens - other.tokens, self.owner, self.shape)

    def summed(self, values: Tensor) -> Tensor:
        """Sums over each response's tokens of values [T]: [B, K]."""
        total = values.new_zeros(self.shape[0] * self.shape[1])
        return total.index_add(0, self.owner, values).view(self.shape)


def margin(values: Tensor) -> Tensor:
    """Chosen minus rejected: [B, 2] -> [B]."""
    return values[:, 0] - values[:, 1]


def hidden_states(model: PreTrainedModel, segments: Segments, places: TokenPlan) -> Tensor:
    """Last hidden states, after the final norm, of each reader of `places`: [T, D].

    In the last layer whatever works token by token, its MLP and the final norm, sees those places alone.
    """
    # Any other attention would ignore the segments without a word and let everything in a row see everything before it.
    assert model.config._attn_implementation == NAME
    embedding = model.get_input_embeddings()
    assert type(embedding) is nn.Embedding
    with _last_layer_at(model, places.different):
        out = model.base_model(
            inputs_embeds=embed(embedding, segments.tokens),
            position_ids=segments.positions,
            segments=segments,
            use_cache=False,
        )
    states = out.last_hidden_state.flatten(0, 1)
    is_whole = len(states) != len(places.different)  # GPT-2's keep the ids' shape
    return states.index_select(0, places.different[places.reader] if is_whole else places.reader)


@contextmanager
def _last_layer_at(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """While inside, the last layer's MLP and all that follows it see the different, ascending `places` [T] alone."""

    def picked(states: Tensor) -> Tensor:
        return states.flatten(0, 1).index_select(0, places)

    def spread(mlp: nn.Module, given: tuple[Tensor], out: Tensor) -> Tensor:
        whole = out.new_zeros(shape[0] * shape[1], out.shape[-1])
        return whole.index_copy(0, places, out).view(*shape, -1)

    def before(mlp: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        shape[:] = given[0].shape[:2]
        return (picked(given[0]),)

    shape = [0, 0]
    base: Any = model.base_model
    is_gpt2 = hasattr(base, "h")
    last = (base.h if is_gpt2 else base.layers)[-1]
    hooks = [
        last.mlp.register_forward_pre_hook(before),
        last.mlp.register_forward_hook(spread),
    ]
    if not is_gpt2:  # GPT-2 brings its states back to the ids' shape
        hooks.append(last.register_forward_hook(lambda layer, given, out: picked(out)[None]))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def logprobs(model: PreTrainedModel, segments: Segments) -> LogProbs:
    """Log-prob of every response token under a causal language model, from one forward pass."""
    states = hidden_states(model, segments, segments.predicting)
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    tokens = target_logprobs(states, head.weight, head.bias, segments.target)
    return LogProbs(tokens, segments.owner, segments.shape)


def head_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The output head: hidden states [..., D] to logits [..., V], in float32 or better."""
    head = model.get_output_embeddings()
    assert head is not None
    return lambda states: at_least_float32(head(states))


def token_logprobs(
    states: Tensor, target: Tensor, head: Callable[[Tensor], Tensor], chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """log p(target | state): states [T, D], target [T] -> [T].

    When more than one chunk is needed, each one's logits are recomputed in the backward pass rather than kept.
    """

    def of_chunk(states: Tensor, target: Tensor) -> Tensor:
        logits = head(states)
        return logits.gather(-1, target[:, None]).squeeze(-1) - logits.logsumexp(-1)

    width = head(states[:1].detach()).shape[-1]
    parts = list(chunks(len(target), width, chunk_bytes))
    if len(parts) <= 1 or not torch.is_grad_enabled():
        return torch.cat([of_chunk(states[part], target[part]) for part in parts])
    return torch.cat([checkpoint(of_chunk, states[part], target[part], use_reentrant=False) for part in parts])


def chunks(num: int, width: int, chunk_bytes: int) -> Iterator[slice]:
    """Slices of `num` positions whose float32 logits of `width` entries fit in `chunk_bytes`."""
    size = max(1, chunk_bytes // (4 * width))
    for begin in range(0, num, size):
        yield slice(begin, begin + size)


@dataclass(frozen=True)
class Divergence:
    """Per-token log-probs of a policy and the reference on the policy's samples, and their full KL: each [T], nats."""

    policy: Tensor
    reference: Tensor
    kl: Tensor


@torch.no_grad()
def divergence(policy: PreTrainedModel, reference: PreTrainedModel, segments: Segments) -> Divergence:
    """KL(policy || reference) over the whole vocabulary at each response token, beside both log-probs."""
    states = [hidden_states(model, segments, segments.predicting) for model in (policy, reference)]
    heads = [head_of(policy), head_of(reference)]
    width = heads[0](states[0][:1]).shape[-1]
    found: list[list[Tensor]] = [[], [], []]
    for part in chunks(len(segments.target), 2 * width, CHUNK_BYTES):
        p, q = (head(state[part]).log_softmax(-1) for head, state in zip(heads, states, strict=True))
        target = segments.target[part][:, None]
        values = (p.gather(-1, target).squeeze(-1), q.gather(-1, target).squeeze(-1), (p.exp() * (p - q)).sum(-1))
        for column, value in zip(found, values, strict=True):
            column.append(value)
    return Divergence(*map(torch.cat, found))
