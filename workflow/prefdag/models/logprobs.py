"""Log-probs of responses: from hidden states to per-token values, totals and counts.

Only response positions reach the output head, in chunks sized by bytes, with the log-sum-exp in float32 or wider: all
positions' logits would be a very large tensor, R x L x V.

Shapes: B comparisons of K responses; T response tokens; D hidden size; V vocabulary.
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
from prefdag.models.ops.seeded_dropout import read_tokens
from prefdag.models.ops.vocabulary import embed, target_logprobs
from prefdag.models.packing import Segments, TokenPlan
from prefdag.models.route import logit_scale, route_of, scaled_logits, soft_cap

CHUNK_BYTES = 64 << 20  # float32 logits in memory at a time


@dataclass(frozen=True)
class LogProbs:
    """Log-probs of B x K responses, in nats.

    Attributes:
        tokens: [T], the log-prob of each response token.
        owner: [T], the response of each token as b * K + k; a response's tokens are contiguous and in order.
        shape: (B, K).
    """

    tokens: Tensor
    owner: Tensor
    shape: tuple[int, int]

    @property
    def total(self) -> Tensor:
        """Return the log-prob of each response, summed over its tokens: [B, K]."""
        return self.summed(self.tokens)

    @property
    def count(self) -> Tensor:
        """Return the number of tokens of each response, as floats: [B, K]."""
        return self.summed(torch.ones_like(self.tokens))

    @property
    def position(self) -> Tensor:
        """Return each token's index in its response, from 0: [T]."""
        starts = torch.searchsorted(self.owner, self.owner)
        return torch.arange(len(self.owner), device=self.owner.device) - starts

    @property
    def mean(self) -> Tensor:
        """Return the log-prob of each response, averaged over its tokens: [B, K]."""
        return self.total / self.count

    def __sub__(self, other: Self) -> Self:
        """Return log-ratios."""
        # Subtract tokens, not totals: neighbouring float32 numbers near a total of -3,700 are 2.4e-4 apart.
        assert self.shape == other.shape and self.tokens.shape == other.tokens.shape
        return type(self)(self.tokens - other.tokens, self.owner, self.shape)

    def summed(self, values: Tensor) -> Tensor:
        """Sum values [T] over each response's tokens: [B, K]."""
        total = values.new_zeros(self.shape[0] * self.shape[1])
        return total.index_add(0, self.owner, values).view(self.shape)


def margin(values: Tensor) -> Tensor:
    """Return chosen minus rejected: [B, 2] -> [B]."""
    return values[:, 0] - values[:, 1]


def hidden_states(model: PreTrainedModel, segments: Segments, plan: TokenPlan) -> Tensor:
    """Return the last hidden states, after the final norm, that the readers of `plan` read: [T, D].

    By the model's route (`prefdag.models.route`): packed, or each response in a padded row. On the fastest route, what
    works token by token in the last layer (its MLP and the final norm) runs at these positions alone.
    """
    route = route_of(model)
    read_tokens(model, segments.tokens)
    if route.kind == "padded":
        return padded_states(model, segments, plan)
    if route.kind == "mask":
        out = _forward(model, segments, attention_mask=_additive(segments.mask, model.dtype))
    elif not route.last_layer:
        out = _forward(model, segments, segments=segments)
    else:
        with _last_layer_at(model, plan.places):
            out = _forward(model, segments, segments=segments)
    states: Tensor = out.last_hidden_state.flatten(0, 1)
    is_full = len(states) != len(plan.places)  # GPT-2 returns states of the ids' shape
    return states.index_select(0, plan.places[plan.reader] if is_full else plan.reader)


def _forward(model: PreTrainedModel, rows: Segments, **options: Any) -> Any:
    """Run the trunk on packed rows."""
    # Any other attention would silently ignore `segments`: every token would see all earlier ones in its row.
    assert "segments" not in options or model.config._attn_implementation == NAME, (
        "its attention does not use transformers' attention interface"
    )
    embedding = model.get_input_embeddings()
    inputs: dict[str, Tensor] = {"input_ids": rows.tokens}
    if type(embedding) is nn.Embedding:  # Gemma's scales its output
        inputs = {"inputs_embeds": embed(embedding, rows.tokens)}
    return model.base_model(**inputs, position_ids=rows.positions, use_cache=False, **options)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a boolean mask as a term of the scores: 0, or the lowest number. Padding sees itself, never nothing."""
    diagonal = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~(mask | diagonal), torch.finfo(dtype).min)


def padded_states(model: PreTrainedModel, segments: Segments, plan: TokenPlan) -> Tensor:
    """Return what `hidden_states` does, from one padded row for each response: [T, D].

    If the route's head is the model's own, return logits instead: [T, V].
    """
    tokens, mask = padded_rows(segments)
    own_head = route_of(model).head == "model" and model.get_output_embeddings() is not None
    if own_head:
        states = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    else:
        states = model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    # A prompt's state is the same in the rows of all its responses: read the first.
    places = (segments.padded_row.flatten() * tokens.shape[1] + segments.positions.flatten())[plan.places]
    return states.flatten(0, 1).index_select(0, places).index_select(0, plan.reader)


def padded_rows(segments: Segments) -> tuple[Tensor, Tensor]:
    """Return tokens and attention mask of a row for each packed response, right-padded: each [B * K, L]."""
    (num, size), width = segments.packed_shape, segments.reach
    tokens = segments.tokens.new_zeros(num, size, width)
    mask = torch.zeros_like(tokens)
    of_prompt = (segments.comparison >= 0) & (segments.response == 0)
    of_response = segments.response > 0
    for part, columns in ((of_prompt, slice(None)), (of_response, segments.response[of_response] - 1)):
        at = (segments.comparison[part], columns, segments.positions[part])
        values = segments.tokens[part]
        tokens[at] = values[:, None].expand(-1, size) if part is of_prompt else values
        mask[at] = 1
    return tokens.flatten(0, 1), mask.flatten(0, 1)


@contextmanager
def _last_layer_at(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """While active, the last layer's MLP and everything after it run at `places` alone: ascending, different, [U]."""

    def select(states: Tensor) -> Tensor:
        return states.flatten(0, 1).index_select(0, places)

    def before_mlp(mlp: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        shape[:] = args[0].shape[:2]
        return (select(args[0])[None],)  # a mixture of experts needs three dimensions

    def after_mlp(mlp: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        # The residual connection needs the shape [R, L, D]; the other positions are dropped after it.
        full = out.new_zeros(shape[0] * shape[1], out.shape[-1])
        return full.index_copy(0, places, out[0]).view(*shape, -1)

    shape = [0, 0]
    base: Any = model.base_model
    is_gpt2 = hasattr(base, "h")
    last = (base.h if is_gpt2 else base.layers)[-1]
    hooks = [
        last.mlp.register_forward_pre_hook(before_mlp),
        last.mlp.register_forward_hook(after_mlp),
    ]
    if not is_gpt2:  # GPT-2 reshapes its states to the ids' shape at the end, which needs all positions
        hooks.append(last.register_forward_hook(lambda layer, args, out: select(out)[None]))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def logprobs(model: PreTrainedModel, segments: Segments) -> LogProbs:
    """Return the log-prob of every response token under a causal language model, from one forward pass."""
    states = hidden_states(model, segments, segments.predicting)
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear) and route_of(model).head == "linear" and soft_cap(model.config) is None:
        scale = logit_scale(model.config)
        states = states if scale == 1 else states * scale
        assert scale == 1 or head.bias is None
        tokens = target_logprobs(states, head.weight, head.bias, segments.target)
    else:
        tokens = token_logprobs(states, segments.target, head_of(model))
    return LogProbs(segments.of_responses(tokens), segments.owner, segments.shape)


def head_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """Return the output head as a function: hidden states [..., D] -> logits [..., V] in float32 or wider."""
    if route_of(model).head == "model":
        return at_least_float32
    head = model.get_output_embeddings()
    assert head is not None
    return lambda states: scaled_logits(model.config, at_least_float32(head(states)))


def token_logprobs(
    states: Tensor, target: Tensor, head: Callable[[Tensor], Tensor], chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Return log p(target | state) in nats: states [T, D], target [T] -> [T].

    If there is more than one chunk, each one's logits are recomputed in the backward pass instead of saved.
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
    """Yield slices of `num` positions whose float32 logits of `width` entries fit in `chunk_bytes`."""
    size = max(1, chunk_bytes // (4 * width))
    for begin in range(0, num, size):
        yield slice(begin, begin + size)


@dataclass(frozen=True)
class Divergence:
    """Per-token log-probs of policy and reference, and KL(policy || reference) at each token: each [T], in nats."""

    policy: Tensor
    reference: Tensor
    kl: Tensor


@torch.no_grad()
def divergence(policy: PreTrainedModel, reference: PreTrainedModel, segments: Segments) -> Divergence:
    """Compute KL(policy || reference) over the whole vocabulary, and both log-probs, at each response token."""
    states = [hidden_states(model, segments, segments.predicting) for model in (policy, reference)]
    heads = [head_of(policy), head_of(reference)]
    width = heads[0](states[0][:1]).shape[-1]
    columns: list[list[Tensor]] = [[], [], []]
    for part in chunks(len(segments.target), 2 * width, CHUNK_BYTES):
        p, q = (head(state[part]).log_softmax(-1) for head, state in zip(heads, states, strict=True))
        target = segments.target[part][:, None]
        values = (p.gather(-1, target).squeeze(-1), q.gather(-1, target).squeeze(-1), (p.exp() * (p - q)).sum(-1))
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return Divergence(*(segments.of_responses(torch.cat(column)) for column in columns))
