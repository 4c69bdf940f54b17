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
from prefdag.models.ops.vocabulary import target_logprobs
from prefdag.models.packing import Segments, TokenPlan
from prefdag.models.route import logit_scale, route_of, soft_cap


def states_of(model: PreTrainedModel, segments: Segments, behind: bool = False) -> Tensor:
    """Return the states that predict each response token, [T, D]: hidden ones, or logits if the route says so.

    behind: those of the responses' last tokens follow, [T + B * K, D].
    """
    if not behind:
        return hidden_states(model, segments, segments.predicting)
    return hidden_states(model, segments, TokenPlan.of(torch.cat([segments.predictor, segments.last.flatten()])))


def tempered_logprobs(model: PreTrainedModel, states: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return the log-probs of tokens [T] in nats, from the states [T, D] that predict them: [T].

    temperature: divides the logits, after what the architecture does to them (a factor, a soft cap).
    """
    head, logits = model.get_output_embeddings(), head_of(model)
    is_linear = route_of(model).head == "linear" and logit_scale(model.config) == 1 and soft_cap(model.config) is None
    if not is_linear or not isinstance(head, nn.Linear):
        return token_logprobs(states, target, lambda some: logits(some) / temperature)
    bias = None if head.bias is None else head.bias / temperature
    return target_logprobs(states / temperature, head.weight, bias, target)


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
