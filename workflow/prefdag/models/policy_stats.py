"""What on-policy training reads of every response token.

As in `prefdag.models.logprobs`, only response positions reach the output head, in chunks sized by bytes.

Shapes: B comparisons of K responses; T response tokens; D hidden size; V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prefdag.models.logprobs import CHUNK_BYTES, chunks, head_of, hidden_states, token_logprobs
from prefdag.models.ops.statistics import HeadStatistics
from prefdag.models.ops.vocabulary import target_logprobs
from prefdag.models.packing import Segments, TokenPlan
from prefdag.models.route import logit_scale, route_of, soft_cap

# Logits in memory at a time. A whole round's are usually fewer, and are then not recomputed in its backward pass.
CHUNK_BYTES_OF = {"cpu": 768 << 20, "cuda": 1 << 30}


def states_of(model: PreTrainedModel, segments: Segments, behind: bool = False) -> Tensor:
    """Return the states that predict each response token, [T, D]: hidden ones, or logits if the route says so.

    behind: those of the responses' last tokens follow, [T + B * K, D].
    """
    if not behind:
        return hidden_states(model, segments, segments.predicting)
    return hidden_states(model, segments, TokenPlan.of(torch.cat([segments.predictor, segments.last.flatten()])))


@dataclass(frozen=True)
class Measured:
    """Of every response token, in nats: each [T].

    logprobs: of the policy, with gradient. entropy: of the policy before the token. reference: log-probs of the
    reference. kl: KL(policy || reference) before the token. The last two are None without a reference.
    """

    logprobs: Tensor
    entropy: Tensor
    reference: Tensor | None
    kl: Tensor | None


def measured(
    model: PreTrainedModel,
    states: Tensor,
    target: Tensor,
    temperature: float,
    reference: tuple[PreTrainedModel, Tensor] | None = None,
) -> Measured:
    """Compute log-probs, entropy and KL of every response token in one pass over the logits.

    Args:
        model: the policy.
        states: its hidden states, [T, D].
        target: the response tokens, [T].
        temperature: divides the logits of policy and reference.
        reference: the reference policy and its hidden states, [T, D].
    """
    if not _is_linear(model) or (reference is not None and not _is_linear(reference[0])):
        return _measured_plainly(model, states, target, temperature, reference)
    other = None if reference is None else _scaled_head(*reference, temperature)
    head = _scaled_head(model, states, temperature)
    statistics = HeadStatistics(target, torch.promote_types(head[1].dtype, torch.float32), other)
    logprobs = target_logprobs(*head, target, _chunk_bytes(states), statistics)
    return Measured(logprobs, statistics.entropy, statistics.reference, statistics.kl)


def _measured_plainly(
    model: PreTrainedModel,
    states: Tensor,
    target: Tensor,
    temperature: float,
    reference: tuple[PreTrainedModel, Tensor] | None,
) -> Measured:
    """Do as `measured` for heads that are not linear, in a pass for each."""
    with torch.no_grad():
        sums = distribution(model, states, temperature, reference)
        values = None if reference is None else tempered_logprobs(*reference, target, temperature)
    return Measured(tempered_logprobs(model, states, target, temperature), sums.entropy, values, sums.kl)


def tempered_logprobs(model: PreTrainedModel, states: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return the log-probs of tokens [T] in nats, from the states [T, D] that predict them: [T].

    temperature: divides the logits, after what the architecture does to them (a factor, a soft cap).
    """
    if not _is_linear(model):
        logits = head_of(model)
        return token_logprobs(states, target, lambda some: logits(some) / temperature)
    return target_logprobs(*_scaled_head(model, states, temperature), target, _chunk_bytes(states))


def _scaled_head(model: PreTrainedModel, states: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return hidden states [T, D], head and bias whose logits are the model's, divided by the temperature."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    scale = logit_scale(model.config) / temperature
    return (states if scale == 1 else states * scale), head.weight, None if head.bias is None else head.bias * scale


def _is_linear(model: PreTrainedModel) -> bool:
    """Return whether the logits are the states times a matrix."""
    is_linear = isinstance(model.get_output_embeddings(), nn.Linear) and route_of(model).head == "linear"
    return is_linear and soft_cap(model.config) is None


def _chunk_bytes(states: Tensor) -> int:
    return CHUNK_BYTES_OF[states.device.type]


@dataclass(frozen=True)
class Distribution:
    """Sums over the vocabulary before every response token, in nats: each [T].

    entropy: of the policy. kl: KL(policy || reference); None without a reference.
    """

    entropy: Tensor
    kl: Tensor | None


def distribution(
    model: PreTrainedModel,
    states: Tensor,
    temperature: float,
    reference: tuple[PreTrainedModel, Tensor] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Distribution:
    """Compute entropy and KL of every response token, with gradient to the policy.

    Args:
        model: the policy.
        states: its hidden states, [T, D].
        temperature: divides the logits of policy and reference.
        reference: the reference policy and its hidden states, [T, D].
        chunk_bytes: memory for float32 logits.
    """
    head = head_of(model)

    def of_chunk(states: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        p = (head(states) / temperature).log_softmax(-1)  # very large tensor: chunk x V
        probs = p.exp()
        entropy = -(probs * p).sum(-1)
        if reference is None:
            return (entropy,)
        with torch.no_grad():
            q = (head_of(reference[0])(other) / temperature).log_softmax(-1)
        return entropy, (probs * (p - q)).sum(-1)

    width = head(states[:1].detach()).shape[-1]
    parts = list(chunks(len(states), 3 * width, chunk_bytes))
    recompute = len(parts) > 1 and torch.is_grad_enabled()
    columns: list[list[Tensor]] = [[], []]
    for part in parts:
        inputs = states[part], (states if reference is None else reference[1])[part]
        values = checkpoint(of_chunk, *inputs, use_reentrant=False) if recompute else of_chunk(*inputs)
        for column, value in zip(columns, values, strict=False):
            column.append(value)
    return Distribution(torch.cat(columns[0]), torch.cat(columns[1]) if reference is not None else None)
