"""Follow the expected updates of on-policy methods in an enumerated world to the policy that they converge to.

An expected update weights every response, or every group of G responses, by its probability under the policy that
samples, and calls the functions of `prefdag.losses`. No closed form of an optimum is used.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prefdag.config.exact_policy import ExactPolicy
from prefdag.losses import advantages as adv
from prefdag.losses import policy_gradient as pg
from prefdag.theory.solve import Minimum
from prefdag.theory.world import World

STEPS = 5_000
SMALL = 1e-14  # largest change of a probability per unit of rate, as a share of the first, at which updates end
STILL = 1e-17  # the same in one step, the rate included
FARTHEST = 1.0  # of a logit in one step
RUN_AWAY = 1e-12  # probability of all responses but one at which a policy counts as run to it
FLAT = 80  # updates that agree with each other: the rate has grown two million times, and there is no minimum ahead
ESTIMATORS = {"k1": pg.kl_k1, "k2": pg.kl_k2, "k3": pg.kl_k3}


@dataclass(frozen=True)
class Padded:
    """The responses of a world as padded tokens: cells of a prompt's logits, rows, and counted tokens, [Y, L]."""

    world: World

    @cached_property
    def cell(self) -> Tensor:
        longest = max(map(len, self.world.cells))
        return torch.tensor([[*cells, *[0] * (longest - len(cells))] for cells in self.world.cells])

    @cached_property
    def row(self) -> Tensor:
        return self.cell // (self.world.words + 1)

    @cached_property
    def mask(self) -> Tensor:
        counts = torch.tensor([len(cells) for cells in self.world.cells])
        return (torch.arange(self.cell.shape[1]) < counts[:, None]).double()

    def logprobs(self, logits: Tensor) -> Tensor:
        """Return the log-prob of every token [X, Y, L], 0 behind a response's end."""
        return logits.log_softmax(-1).flatten(1)[:, self.cell] * self.mask

    def at_rows(self, values: Tensor) -> Tensor:
        """Return values of prompts and prefixes [X, N] at every token: [X, Y, L]."""
        return values[:, self.row] * self.mask

    def over_rows(self, values: Tensor) -> Tensor:
        """Sum values of tokens [X, Y, L] by prompt and prefix: [X, N]."""
        sums = torch.zeros(self.world.reference.shape[:2], dtype=values.dtype)
        return sums.index_add(1, self.row.flatten(), (values * self.mask).flatten(1))

    def visits(self, chance: Tensor) -> Tensor:
        """Return the probability [X, N] of reaching every prefix, of responses' probabilities [X, Y]."""
        return self.over_rows(chance[:, :, None].expand(-1, -1, self.cell.shape[1]))

    def critic(self, chance: Tensor, returns: Tensor) -> Tensor:
        """Return the mean return behind every prefix [X, N] of responses with probabilities `chance` [X, Y]."""
        visits = self.visits(chance)
        return self.over_rows(chance[:, :, None] * returns) / torch.where(visits > 0, visits, 1.0)


def surrogate(world: World, setting: ExactPolicy, padded: Padded, held: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the expected loss of one round as a function of the logits; `held` [X, N, V + 1] sample the responses."""
    old = padded.logprobs(held)
    chance = old.sum(-1).exp()
    in_reward = setting.beta if setting.where == "reward" else 0.0
    kl = _estimate(setting, padded, world, held, old, old)
    counts = padded.mask.sum(1)
    mean_length = (chance @ counts)[:, None, None]
    weights = {
        "sequence_sum": torch.ones_like(old),
        "sequence_mean": 1 / counts[:, None].expand_as(old),
        "token_mean": 1 / mean_length.expand_as(old),
    }[setting.aggregation] * padded.mask
    if setting.method in ("reinforce", "ppo"):
        advantage = _token_advantages(world, setting, padded, chance, kl, in_reward)
        members, probability = None, chance
    else:
        scores = world.reward - in_reward * kl.sum(-1)
        members = torch.tensor(list(itertools.product(range(scores.shape[1]), repeat=setting.samples)))
        probability = chance[:, members].prod(-1)[:, :, None].expand(-1, -1, setting.samples) / setting.samples
        advantage = _group_advantages(setting, scores[:, members])

    def loss(logits: Tensor) -> Tensor:
        now = padded.logprobs(logits)
        penalty = torch.zeros_like(now)
        if setting.where == "loss":
            penalty = setting.beta * _estimate(setting, padded, world, logits, now, old)
        if members is None:
            step = pg.reinforce(now, advantage) if setting.method == "reinforce" else _ppo(now, old, advantage)
            return (probability[:, :, None] * weights * (step + penalty)).sum()
        step = _ppo(now[:, members], old[:, members], advantage[..., None]) * weights[:, members]
        terms = (penalty * weights).sum(-1)[:, members] if setting.where == "loss" else 0.0
        return (probability * (step.sum(-1) + terms)).sum()

    return loss


def _ppo(now: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    return pg.ppo_policy(now, old, advantage, clip_low=0.2)


def _estimate(setting: ExactPolicy, padded: Padded, world: World, logits: Tensor, now: Tensor, old: Tensor) -> Tensor:
    """Return the KL estimate of every token [X, Y, L]."""
    if setting.estimator == "full":
        return padded.at_rows(pg.kl_full(logits.log_softmax(-1), world.reference.log_softmax(-1)))
    kl = ESTIMATORS[setting.estimator.removeprefix("ratio_")](now, padded.logprobs(world.reference))
    return pg.importance_weighted(kl, now, old) if setting.estimator.startswith("ratio_") else kl


def _token_advantages(
    world: World, setting: ExactPolicy, padded: Padded, chance: Tensor, kl: Tensor, coefficient: float
) -> Tensor:
    """Return rewards-to-go or generalised advantages of every token [X, Y, L], the critic exact up to its error."""
    shape, gamma = kl.shape, setting.gamma
    mask = padded.mask.expand(shape).flatten(0, 1)
    rewards = adv.token_rewards(world.reward.flatten(), kl.flatten(0, 1), mask, coefficient=coefficient)
    returns = adv.rewards_to_go(rewards, mask, gamma=gamma)
    if setting.method == "reinforce":
        return returns.view(shape)
    values = padded.at_rows(padded.critic(chance, returns.view(shape)))
    values = values + setting.critic_error * torch.arange(1, shape[-1] + 1)
    return adv.gae(rewards, values.flatten(0, 1), mask, gamma=gamma, lam=setting.lam)[0].view(shape)


def _group_advantages(setting: ExactPolicy, scores: Tensor) -> Tensor:
    """Return the advantage of every member of every group [X, M, G]."""
    flat = scores.flatten(0, 1)
    if setting.method == "grpo":
        return adv.group_normalised(flat, eps=setting.eps).view_as(scores)
    return (adv.leave_one_out if setting.method == "rloo" else adv.group_mean)(flat).view_as(scores)


def converge(world: World, setting: ExactPolicy) -> Minimum:
    """Follow a policy-gradient method's expected updates from the reference."""
    padded = Padded(world)

    def update(logits: Tensor) -> tuple[Tensor, float]:
        varied = logits.clone().requires_grad_()
        loss = surrogate(world, setting, padded, logits)(varied)
        (gradient,) = torch.autograd.grad(loss, varied)
        return gradient, loss.item()

    return follow(world, update)


def follow(world: World, update: Callable[[Tensor], tuple[Tensor, float]], start: Tensor | None = None) -> Minimum:
    """Apply expected updates until no probability moves.

    The gradient is preconditioned by each state's Fisher matrix (the natural gradient), which moves no fixed point. The
    rate grows while successive directions agree and halves when they do not, so that it decays where a method's step
    does not shrink near its optimum.

    Args:
        world: The world.
        update: Returns gradient [X, N, V + 1] and value of the expected loss at logits.
        start: Logits to begin from; the reference's by default.

    Returns:
        The policy; `gradient` is not a number where the policy runs to one response of each prompt.
    """
    padded = Padded(world)
    logits = (world.reference if start is None else start).clone()
    before, first, left, value, taken = torch.zeros_like(logits), 0.0, 1.0, 0.0, 0
    rate, agreeing = 0.1, 0
    while taken < STEPS:
        taken += 1
        gradient, value = update(logits)
        policy = logits.softmax(-1)
        visits = padded.visits(world.log_policy(logits).exp())
        direction = gradient / (visits[:, :, None] * policy).clamp(min=torch.finfo(policy.dtype).tiny)
        moved = (visits[:, :, None] * policy * direction.abs()).max().item()
        first = first or moved
        left = moved / first if first else 0.0
        if agreeing < FLAT / 2 and (left < SMALL or rate * moved < STILL):
            break
        others = (1 - world.log_policy(logits).exp().max(1).values).max()
        if agreeing > FLAT or not others > RUN_AWAY:  # or it is not a number
            left = float("nan")
            break
        agreement = (direction * before).sum().item()
        agreeing = agreeing + 1 if agreement >= 0 else 0
        rate *= 1.2 if agreeing else 0.5
        largest = (rate * direction.abs()).max().item()
        logits = logits - rate * direction * min(1.0, FARTHEST / largest)
        before = direction
    return Minimum(logits, world.log_policy(logits), value, left, taken)
