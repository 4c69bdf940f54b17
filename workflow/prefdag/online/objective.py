"""The loss of an update, micro-batch by micro-batch.

Shapes: N prompts of G responses; T response tokens of the round, t of a micro-batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from prefdag.config.objectives import Objective
from prefdag.config.online.methods import GRPO, PPO, RLOO, DrGRPO, PolicyMethod, Reinforce, TokenMethod
from prefdag.config.online.settings import Online
from prefdag.losses import policy_gradient
from prefdag.losses.soft_labels import PairLoss, both_orders
from prefdag.models.logprobs import LogProbs
from prefdag.online.rollouts import Rollouts
from prefdag.online.targets import ESTIMATORS, Targets

AGGREGATIONS: dict[str, Callable[[Any], policy_gradient.Aggregation]] = {
    "ppo": lambda method: "token_mean",
    "reinforce": lambda method: "sequence_sum",
    "rloo": lambda method: "sequence_sum",
    "dr_grpo": lambda method: "constant",
    "grpo": lambda method: "sequence_mean" if method.aggregation == "grpo" else "token_mean",
}


@dataclass(frozen=True)
class Normaliser:
    """Weights in the loss of one update, over all processes and micro-batches: of every token [T], and of values."""

    tokens: Tensor
    value: float

    @classmethod
    def of(cls, method: Objective, settings: Online, targets: Targets, rollouts: Rollouts, rows: list[int]) -> Self:
        """rows: the prompts of the update, in the round."""
        lengths, group = rollouts.lengths, rollouts.lengths.shape[1]
        trained = targets.responses.view(lengths.shape)[rows].flatten()
        counts = lengths[rows].flatten()[trained > 0]
        tokens = torch.zeros(len(lengths) * group, dtype=torch.float64)
        places = (torch.tensor(rows)[:, None] * group + torch.arange(group)).flatten()[trained > 0]
        if not isinstance(method, PolicyMethod):
            return cls(torch.full((len(rollouts.ids),), 1 / len(rows), dtype=torch.float64), 1.0)
        how, longest = AGGREGATIONS[method.method](method), settings.max_new_tokens
        if len(counts):
            tokens[places] = policy_gradient.token_weights(counts, how, max_length=longest)
        values = counts.sum().item() + (len(counts) if targets.last_returns is not None else 0)
        return cls(tokens.repeat_interleave(lengths.flatten()), 1 / max(1, values))


@dataclass(frozen=True)
class Inputs:
    """A micro-batch after its forward pass. rows: its prompts in the round; owner: response of each token in it [t].

    logprobs, entropy, kl: [t], with gradient. values: [t], or [t + responses].
    """

    rows: list[int]
    owner: Tensor
    logprobs: Tensor
    values: Tensor | None
    entropy: Tensor | None
    kl: Tensor | None


def micro_batch_loss(
    method: Objective,
    settings: Online,
    inputs: Inputs,
    rollouts: Rollouts,
    targets: Targets,
    normaliser: Normaliser,
    coefficient: float,
    pair_loss: PairLoss | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return a micro-batch's share of an update's loss, and its share of the metrics.

    Args:
        method, settings: of the row.
        inputs: the micro-batch.
        rollouts, targets: of the round.
        normaliser: weights of the update's tokens.
        coefficient: of the KL, if it is in the loss.
        pair_loss: of a method that is a loss of pairs.
    """
    at = rollouts.tokens_of(inputs.rows)
    logprobs = inputs.logprobs

    def read(values: Tensor | None) -> Tensor:
        assert values is not None
        return values[at].to(logprobs)

    old, advantage, weights = read(rollouts.old), read(targets.advantages), read(normaliser.tokens)
    metrics = _ratio_metrics(method, inputs, old, advantage, read(targets.counts), weights)
    if pair_loss is not None:
        loss, of_pairs = _pairs(pair_loss, inputs, read(rollouts.reference), rollouts)
        loss = loss / round(1 / normaliser.tokens[0].item())
        return loss, {"loss": loss.item(), **metrics, **of_pairs}
    assert isinstance(method, PolicyMethod)
    values = _policy_tokens(method, inputs, old, advantage)
    parts = {"policy_loss": (values * weights).sum()}
    if settings.kl.where == "loss" and rollouts.reference is not None:
        kl = _loss_kl(settings.kl.estimator, inputs, old, read(rollouts.reference))
        parts["kl_loss"] = coefficient * (kl * weights).sum()
    if method.entropy:
        assert inputs.entropy is not None
        parts["entropy_loss"] = -method.entropy * (inputs.entropy * weights).sum()
    if inputs.values is not None:
        assert isinstance(method, TokenMethod)
        losses, clipped = _value_losses(method, inputs, rollouts, targets, at)
        parts["value_loss"] = method.value_coefficient * losses.sum() * normaliser.value
        metrics["value_clip_fraction"] = clipped.sum().item() * normaliser.value
    loss = torch.stack(list(parts.values())).sum()
    return loss, {"loss": loss.item(), **{name: part.item() for name, part in parts.items()}, **metrics}


def _policy_tokens(method: PolicyMethod, inputs: Inputs, old: Tensor, advantage: Tensor) -> Tensor:
    """Return the policy loss of every token [t]; RLOO's, of whole responses, is on their first tokens."""
    match method:
        case Reinforce():
            return policy_gradient.reinforce(inputs.logprobs, advantage)
        case RLOO():
            ratio, first = _sequence_ratio(inputs, old)
            losses = policy_gradient.ppo_policy(ratio, torch.zeros_like(ratio), advantage[first], clip_low=method.clip)
            return torch.zeros_like(advantage).index_copy(0, first, losses)
        case PPO() | GRPO() | DrGRPO():
            return policy_gradient.ppo_policy(inputs.logprobs, old, advantage, clip_low=method.clip)
    raise AssertionError(method.method)


def _sequence_ratio(inputs: Inputs, old: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-ratio of each response to the sampling policy, and the index of its first token."""
    _, owner, counts = torch.unique_consecutive(inputs.owner, return_inverse=True, return_counts=True)
    # Differences of tokens, not of sums: they are exactly 0 at the first update.
    total = old.new_zeros(len(counts)).index_add(0, owner, inputs.logprobs - old)
    return total, counts.cumsum(0) - counts


def _loss_kl(estimator: str, inputs: Inputs, old: Tensor, reference: Tensor) -> Tensor:
    """Return the KL term of every token, with gradient: [t]."""
    if estimator == "full":
        assert inputs.kl is not None
        return inputs.kl
    if estimator == "ratio_k3":
        kl = policy_gradient.kl_k3(inputs.logprobs, reference)
        return policy_gradient.importance_weighted(kl, inputs.logprobs, old)
    return ESTIMATORS[estimator](inputs.logprobs, reference)


def _pairs(
    pair_loss: PairLoss, inputs: Inputs, reference: Tensor, rollouts: Rollouts
) -> tuple[Tensor, dict[str, float]]:
    """Return the sum of a micro-batch's pair losses, weighted by their labels, and its metrics."""
    assert rollouts.labels is not None
    shape = len(inputs.rows), 2
    labels = rollouts.labels[inputs.rows].to(inputs.logprobs)
    policy = LogProbs(inputs.logprobs, inputs.owner, shape)
    each = both_orders(pair_loss, policy, LogProbs(reference, inputs.owner, shape), labels)
    ratios = LogProbs((inputs.logprobs - reference).detach(), inputs.owner, shape).total
    gap = (ratios[:, 0] - ratios[:, 1]) * (2 * labels - 1).sign()
    return each.sum(), {"pairs": float(len(gap)), "accuracy": (gap > 0).sum().item(), "margin": gap.sum().item()}


@torch.no_grad()
def _ratio_metrics(
    method: Objective, inputs: Inputs, old: Tensor, advantage: Tensor, counts: Tensor, weights: Tensor
) -> dict[str, float]:
    """Return metrics of the ratio to the sampling policy. Means are over counted tokens, as the weights' shares."""
    change = inputs.logprobs - old
    ratio = policy_gradient.ratio_of(inputs.logprobs, old)
    counted = counts.sum().item()
    metrics = {
        "counted": counted,
        "approx_kl": -(change * counts).sum().item(),
        "approx_kl_k2": (change**2 * counts).sum().item() / 2,
        "ratio_max": ratio.max().item(),
        "ratio_error": (ratio - 1).abs().max().item(),
    }
    if isinstance(method, (PPO, RLOO, GRPO, DrGRPO)):
        low, high = ((ratio < 1 - method.clip), (ratio > 1 + method.clip))
        metrics |= {"clip_low": (low * counts).sum().item(), "clip_high": (high * counts).sum().item()}
        clipped = (low & (advantage < 0)) | (high & (advantage > 0))
        metrics["clip_fraction"] = (clipped * counts).sum().item()
    return metrics


def _value_losses(
    method: TokenMethod, inputs: Inputs, rollouts: Rollouts, targets: Targets, at: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the value loss of each token, then behind each response, and where the clipped one decides."""
    assert inputs.values is not None and rollouts.values is not None and targets.returns is not None
    old, returns, counts = rollouts.values[at], targets.returns[at], targets.counts[at]
    if targets.last_returns is not None:
        assert rollouts.last_values is not None
        group = rollouts.lengths.shape[1]
        responses = (torch.tensor(inputs.rows)[:, None] * group + torch.arange(group)).flatten()
        old = torch.cat([old, rollouts.last_values.flatten()[responses]])
        returns = torch.cat([returns, targets.last_returns[responses]])
        counts = torch.cat([counts, targets.responses[responses]])
    old, returns, counts = (part.to(inputs.values) for part in (old, returns, counts))
    losses = policy_gradient.ppo_value(inputs.values, old, returns, clip=method.value_clip)
    plain = policy_gradient.ppo_value(inputs.values.detach(), old, returns, clip=None)
    return losses * counts, (losses.detach() > plain) * counts
