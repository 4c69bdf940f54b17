"""What a round's updates aim at: advantages and returns of its tokens.

Shapes: N prompts of G responses, S = N G responses; T response tokens, flat; [S, L] the same as padded rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from prefdag.config.objectives import Objective
from prefdag.config.online.methods import GRPO, PPO, RLOO, DrGRPO, PolicyMethod, Reinforce, TokenMethod
from prefdag.config.online.settings import Online
from prefdag.errors import UserError
from prefdag.losses import advantages, policy_gradient
from prefdag.online.rollouts import Rollouts

ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": policy_gradient.kl_k1,
    "k2": policy_gradient.kl_k2,
    "k3": policy_gradient.kl_k3,
}


@dataclass(frozen=True)
class Layout:
    """Tokens of responses as padded rows. index: place of each token in the flat rows, [T]; behind: of the place
    behind each response, [S], if the rows have one."""

    index: Tensor
    behind: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, lengths: Tensor, extra: int = 0) -> Self:
        """Lay out responses. lengths: tokens of each, [S]; extra: columns behind the longest."""
        width = int(lengths.max()) + extra
        rows = torch.arange(len(lengths)).repeat_interleave(lengths)
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        behind = torch.arange(len(lengths)) * width + lengths
        return cls(rows * width + torch.arange(len(rows)) - starts, behind, (len(lengths), width))

    @property
    def mask(self) -> Tensor:
        """Return 1 where a row has a token: [S, L] float64."""
        return self.pad(torch.ones(len(self.index), dtype=torch.float64))

    def pad(self, tokens: Tensor) -> Tensor:
        """[T] -> [S, L], 0 where there is no token."""
        return tokens.new_zeros(self.shape[0] * self.shape[1]).index_copy(0, self.index, tokens).view(self.shape)

    def flat(self, rows: Tensor) -> Tensor:
        """[S, L] -> [T]."""
        return rows.flatten()[self.index]

    def pad_last(self, values: Tensor) -> Tensor:
        """Put a value behind each response: [S] -> [S, L]."""
        return values.new_zeros(self.shape[0] * self.shape[1]).index_copy(0, self.behind, values).view(self.shape)

    def last(self, rows: Tensor) -> Tensor:
        """[S, L] -> the values behind each response [S]."""
        return rows.flatten()[self.behind]


@dataclass(frozen=True)
class Targets:
    """What the updates of a round aim at; constant through them.

    Attributes:
        advantages: of every token, [T].
        counts: 1 for tokens of responses that are trained on, [T].
        responses: 1 for responses that are trained on, [S].
        returns: what the values should be, [T]; behind the responses, [S], in `last_returns`.
        metrics: of the round.
    """

    advantages: Tensor
    counts: Tensor
    responses: Tensor
    returns: Tensor | None
    last_returns: Tensor | None
    metrics: dict[str, float]


def targets_of(
    method: Objective,
    settings: Online,
    rollouts: Rollouts,
    rewards: Tensor,
    coefficient: float,
    baselines: Tensor | None = None,
) -> Targets:
    """Compute advantages and returns of a round, in float64.

    Args:
        method: the row's method.
        settings: the row's settings.
        rollouts: scored and measured.
        rewards: of the responses after normalisation, [N, G].
        coefficient: of the KL.
        baselines: reward of each prompt's greedy answer, [N], if the method reads it.

    Raises:
        UserError: no response is left to train on.
    """
    targets = _targets(method, settings, rollouts, rewards, coefficient, baselines)
    if settings.importance_cap is None:
        return targets
    weights, metrics = _importance(method, settings.importance_cap, rollouts, targets.counts)
    return replace(targets, advantages=targets.advantages * weights, metrics=targets.metrics | metrics)


def _importance(method: Objective, cap: float, rollouts: Rollouts, counts: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return min(p / p_sampler, cap) of each token [T], of RLOO of each whole response, and metrics of it.

    The advantage of a token is a factor of its policy loss, clipped or not, so these weights of advantages weigh the
    policy gradient. They are exactly 1 where the sampler's log-probs are the training's.

    Reference: Ionides 2008, Truncated Importance Sampling; Yao et al. 2025 (for samplers with other arithmetic).
    """
    assert rollouts.old is not None
    change = rollouts.old.double() - rollouts.sampled
    if isinstance(method, RLOO):
        lengths = rollouts.lengths.flatten()
        change = Layout.of(lengths).pad(change).sum(1).repeat_interleave(lengths)
    ratio = change.exp()
    weights, counted = ratio.clamp(max=cap), counts > 0
    metrics = {
        "importance_ratio": weights[counted].mean().item(),
        "importance_capped": (ratio > cap)[counted].double().mean().item(),
    }
    return weights, metrics


def _targets(
    method: Objective,
    settings: Online,
    rollouts: Rollouts,
    rewards: Tensor,
    coefficient: float,
    baselines: Tensor | None,
) -> Targets:
    lengths = rollouts.lengths.flatten()
    if not isinstance(method, PolicyMethod):
        ones = torch.ones(len(lengths), dtype=torch.float64)
        return Targets(0 * rollouts.ids.double(), 0 * rollouts.ids.double() + 1, ones, None, None, {})
    trained = torch.ones(len(lengths), dtype=torch.float64)
    if settings.missing_eos is not None and settings.missing_eos.how == "mask":
        trained = rollouts.ended.flatten().double()
    if not trained.any():
        raise UserError(
            "every response of the round was cut before its end-of-turn, and missing_eos masks them all, so nothing is "
            "left to train on; raise max_new_tokens, or say missing_eos: {how: subtract}"
        )
    counts = trained.repeat_interleave(lengths)
    kl = _reward_kl(settings, rollouts)
    if isinstance(method, TokenMethod):
        return _token_targets(method, rollouts, rewards, coefficient * kl, counts, trained, baselines)
    layout = Layout.of(lengths)
    shaped = rewards - coefficient * layout.pad(kl).sum(1).view(rewards.shape)
    advantages = _group_advantages(method, shaped).flatten().repeat_interleave(lengths)
    return Targets(advantages, counts, trained, None, None, _moments("advantage", advantages, counts))


def _reward_kl(settings: Online, rollouts: Rollouts) -> Tensor:
    """Return the KL of each token that counts in its reward: [T]; 0 where the KL is in the loss, or there is none."""
    if settings.kl.where == "loss" or rollouts.reference is None:
        return torch.zeros(len(rollouts.ids), dtype=torch.float64)
    assert rollouts.old is not None
    if settings.kl.estimator == "full":
        assert rollouts.kl is not None
        return rollouts.kl.double()
    return ESTIMATORS[settings.kl.estimator](rollouts.old.double(), rollouts.reference.double())


def _group_advantages(method: PolicyMethod, rewards: Tensor) -> Tensor:
    """[N, G] -> [N, G]."""
    match method:
        case RLOO():
            return advantages.leave_one_out(rewards)
        case DrGRPO():
            return advantages.group_mean(rewards)
        case GRPO():
            return advantages.group_normalised(rewards, eps=method.epsilon)
    raise AssertionError(method.method)


def _token_targets(
    method: TokenMethod,
    rollouts: Rollouts,
    rewards: Tensor,
    penalty: Tensor,
    counts: Tensor,
    trained: Tensor,
    baselines: Tensor | None,
) -> Targets:
    lengths = rollouts.lengths.flatten()
    behind = method.score_at == "after_eos"
    layout = Layout.of(lengths, extra=int(behind))
    mask = layout.mask
    of_tokens = advantages.token_rewards(
        rewards.flatten(), layout.pad(penalty), mask, coefficient=1.0, score_at=method.score_at
    )
    valued = advantages.value_mask(mask, method.score_at)
    values = None
    if rollouts.values is not None:
        values = layout.pad(rollouts.values.double())
        if behind:
            assert rollouts.last_values is not None
            values = values + layout.pad_last(rollouts.last_values.double().flatten())
    if isinstance(method, PPO):
        assert values is not None
        padded, returns = advantages.gae(of_tokens, values, valued, gamma=method.gamma, lam=method.lam)
    else:
        assert isinstance(method, Reinforce)
        returns = advantages.rewards_to_go(of_tokens, valued, gamma=method.gamma)
        padded = advantages.subtract_baseline(returns, _baseline(method, values, baselines, rewards), mask)
    flat = layout.flat(padded)
    metrics = _moments("advantage", flat, counts)
    if method.whiten != "off":
        flat = advantages.whiten(flat[None], counts[None], ddof=1 if method.whiten == "sample" else 0)[0]
    if values is None:
        return Targets(flat, counts, trained, None, None, metrics)
    wanted = layout.flat(returns)
    if wanted[counts > 0].numel() > 1:
        explained = policy_gradient.explained_variance(layout.flat(values), wanted, counts).item()
        metrics["explained_variance"] = explained if math.isfinite(explained) else 0.0
    return Targets(flat, counts, trained, wanted, layout.last(returns) if behind else None, metrics)


def _baseline(method: Reinforce, values: Tensor | None, greedy: Tensor | None, rewards: Tensor) -> Tensor:
    """Return what is subtracted from the rewards-to-go: of each response [S] or token [S, L]."""
    match method.baseline:
        case "none":
            return torch.zeros(rewards.numel(), dtype=torch.float64)
        case "constant":
            return torch.full((rewards.numel(),), method.constant, dtype=torch.float64)
        case "greedy":
            assert greedy is not None
            return greedy.repeat_interleave(rewards.shape[1])
    assert values is not None
    return values


def _moments(name: str, values: Tensor, counts: Tensor) -> dict[str, float]:
    """Return mean and deviation of counted values [T]."""
    counted = values[counts > 0]
    return {f"{name}_mean": counted.mean().item(), f"{name}_std": counted.std(correction=0).item()}
