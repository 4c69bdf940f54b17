"""Minimise the population loss of a tabular policy: all comparisons, weighted by their probability.

Comparisons are sampled independently from the reference and labelled by a Bradley-Terry (rankings: Plackett-Luce) model
of the reward, so a finite data set's loss converges to this one. The losses are those of `prefdag.losses.registry`,
called with real `LogProbs`.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefdag.config.objectives import Objective
from prefdag.losses.registry import loss_of
from prefdag.models.logprobs import LogProbs
from prefdag.theory.world import World

ROUNDS = 20  # of minimising with detached quantities fixed
STEPS = 500  # of one minimisation
SMALL = 1e-10  # largest gradient entry, as a share of the first one's, at which a minimisation ends
AT_REST = 1e-6  # the same after updating the detached quantities, at which the rounds end


@dataclass(frozen=True)
class Population:
    """Every comparison. members [B, K]: responses as x * Y + y, best first; weights [B] sum to 1; labels [B] if K 1."""

    members: Tensor
    weights: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Minimum:
    """The result of a minimisation: the policy's logits and log pi(y | x) [X, Y], its loss, and diagnostics.

    gradient: the largest entry left, as a share of that at the reference (it stays large at a kink, and is not a number
    where a loss fell without bound); evaluations: of the loss and its gradient.
    """

    logits: Tensor
    log_policy: Tensor
    loss: float
    gradient: float
    evaluations: int


def pairs(world: World, flips: float = 0.0) -> Population:
    """Return both orders of two independent samples, pi_ref(y) pi_ref(y') 2 p(y > y'), with `flips` wrong labels."""
    chance = world.log_reference.exp()
    right = (1 - flips) * world.preferred + flips * (1 - world.preferred)
    return _population(world, 2, pair_weights(chance, right))


def pair_weights(chance: Tensor, right: Tensor) -> Tensor:
    """Return pi(y) pi(y') 2 p(y > y') / X [X, Y, Y] of the sampler's probabilities and those of the labels."""
    return 2 * chance[:, :, None] * chance[:, None, :] * right / len(chance)


def rankings(world: World, size: int) -> Population:
    """Return all rankings of `size` independent samples by their probability (Rafailov et al. 2023, eq. 18)."""
    chance = world.log_reference.exp()
    num_prompts, num = chance.shape
    weights = torch.ones(num_prompts, *[num] * size, dtype=chance.dtype) / num_prompts
    rewards = torch.stack([_along(world.reward, at, size).expand_as(weights) for at in range(size)], -1)
    for at in range(size):
        weights = weights * _along(chance, at, size)
        weights = weights * (rewards[..., at] - rewards[..., at:].logsumexp(-1)).exp()
    return _population(world, size, weights * math.factorial(size))


def singles(world: World, flips: float = 0.0) -> Population:
    """Return each response as the preferred one of a pair, desirable, and as the other, undesirable."""
    both = pairs(world, flips)
    shares = [torch.zeros(world.reward.numel(), dtype=torch.float64) for _ in range(2)]
    for at, share in enumerate(shares):
        share.index_add_(0, both.members[:, at], both.weights / 2)
    members = torch.arange(world.reward.numel()).repeat(2)[:, None]
    return Population(members, torch.cat(shares), torch.arange(len(members)) < len(members) // 2)


def _along(values: Tensor, at: int, size: int) -> Tensor:
    """Reshape [X, Y] to [X, 1, .., Y, .., 1], with Y at the place `at` of `size`."""
    return values.view(len(values), *(-1 if place == at else 1 for place in range(size)))


def _population(world: World, size: int, weights: Tensor) -> Population:
    num_prompts, num = world.reward.shape
    tuples = torch.tensor(list(itertools.product(range(num), repeat=size)))
    members = torch.arange(num_prompts)[:, None, None] * num + tuples
    return Population(members.flatten(0, 1), weights.flatten())


class Tokens:
    """The cells, in a table of logits, of the tokens of a population's responses."""

    def __init__(self, world: World, members: Tensor) -> None:
        cells, width = world.cells, world.reference[0].numel()
        self.shape = (members.shape[0], members.shape[1])
        responses = [divmod(member, len(cells)) for member in members.flatten().tolist()]
        self.cell = torch.tensor([x * width + cell for x, y in responses for cell in cells[y]])
        self.owner = torch.tensor([owner for owner, (_, y) in enumerate(responses) for _ in cells[y]])
        self.row = self.cell // (world.words + 1)

    def logprobs(self, logits: Tensor) -> LogProbs:
        """Log-probs of every response token under the policy of these logits [X, N, V + 1]."""
        return LogProbs(logits.log_softmax(-1).flatten().index_select(0, self.cell), self.owner, self.shape)

    def of_rows(self, values: Tensor) -> Tensor:
        """Expand one number per (prompt, prefix), [X, N], to every response token: [T]."""
        return values.flatten().index_select(0, self.row)


def minimise(world: World, objective: Objective, population: Population) -> Minimum:
    """Minimise the population loss by L-BFGS, starting from the reference.

    Quantities of the policy that a loss detaches stay fixed during a minimisation and are updated after it, until
    nothing moves: the fixed point of gradient descent.
    """
    loss = population_loss(world, objective, population)
    logits = world.reference.clone().requires_grad_()
    first = _largest_gradient(loss, logits)
    evaluations, left = 0, 1.0
    for _ in range(ROUNDS):
        evaluations += _descend(loss, logits, max(SMALL, 0.01 * left if evaluations else 0.0) * first)
        before, left = left, _largest_gradient(loss, logits) / first
        if not left > AT_REST or left > 0.9 * before:  # converged, stalled, or not a number
            break
    held = logits.detach()
    return Minimum(held, world.log_policy(held), loss(held, held).item(), left, evaluations)


def population_of(world: World, objective: Objective, flips: float, ranked: int) -> Population:
    """Return the comparisons that a loss reads; rankings have `ranked` responses."""
    if objective.responses == "many":
        return rankings(world, ranked)
    return (singles if objective.responses == "one" else pairs)(world, flips)


def population_loss(world: World, objective: Objective, population: Population) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the mean loss as a function of the policy's logits and of the logits for detached quantities."""
    values = comparison_losses(world, objective, population)
    return lambda logits, held: population.weights @ values(logits, held)


def comparison_losses(world: World, objective: Objective, population: Population) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of every comparison [B] as such a function."""
    compute, tokens = loss_of(objective), Tokens(world, population.members)
    fixed: dict[str, Any] = {
        "reference": tokens.logprobs(world.reference),
        "scores": world.reward.flatten()[population.members],
        "labels": population.labels,
    }
    fixed = {name: value for name, value in fixed.items() if name in objective.reads}
    renewed = {name: RENEWED[name] for name in objective.reads - fixed.keys()}

    def losses(logits: Tensor, held: Tensor) -> Tensor:
        now = {name: of(world, objective, tokens, logits, held) for name, of in renewed.items()}
        values = compute(tokens.logprobs(logits), **fixed, **now)
        return values[0] if "state" in objective.reads else values

    return losses


def _collision(world: World, objective: Objective, tokens: Tokens, logits: Tensor, held: Tensor) -> Tensor:
    """log sum_v p_v^2 [T], shifted so that WPO's weight, which detaches the policy, is the held policy's."""
    collision = tokens.of_rows((2 * held.log_softmax(-1)).logsumexp(-1))
    return collision + (tokens.logprobs(logits).tokens - tokens.logprobs(held).tokens).detach()


def _divergence(world: World, objective: Objective, tokens: Tokens, logits: Tensor, held: Tensor) -> Tensor:
    """KL(reference || policy) over the vocabulary [T]; TDPO2 detaches the chosen responses', so theirs is held."""
    reference = world.reference.log_softmax(-1)

    def of(logits: Tensor) -> Tensor:
        return tokens.of_rows((reference.exp() * (reference - logits.log_softmax(-1))).sum(-1))

    chosen = (tokens.owner % 2 == 0) & (objective.method == "tdpo2")
    return torch.where(chosen, of(held.detach()), of(logits))


def _mismatched(world: World, objective: Objective, tokens: Tokens, logits: Tensor, held: Tensor) -> Tensor:
    """The mean log-ratio of another prompt's response after this prompt, [1]."""
    ratio, chance = world.log_policy(held.detach()) - world.log_reference, world.log_reference.exp()
    others = 1 - torch.eye(len(chance), dtype=chance.dtype)
    return ((others @ chance) * ratio).sum()[None] / others.sum()


def _state(world: World, objective: Objective, tokens: Tokens, logits: Tensor, held: Tensor) -> dict[str, float]:
    """Return BCO's state after infinitely many examples: one more step does not move the mean."""
    ratio = world.log_policy(held.detach()) - world.log_reference
    mean = objective.parameters()["beta"] * (world.log_reference.exp() * ratio).sum(1).mean().item()
    return {"mean": mean, "count": math.inf}


RENEWED = {"collision": _collision, "divergence": _divergence, "mismatched": _mismatched, "state": _state}


def _descend(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, small: float) -> int:
    """Minimise in place with detached quantities fixed; return the number of evaluations."""
    held, evaluations = logits.detach().clone(), 0
    solver = torch.optim.LBFGS(
        [logits],
        max_iter=STEPS,
        max_eval=2 * STEPS,
        history_size=100,
        tolerance_grad=small,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        solver.zero_grad()
        value = loss(logits, held)
        value.backward()
        return value

    solver.step(closure)
    return evaluations


def _largest_gradient(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor) -> float:
    (gradient,) = torch.autograd.grad(loss(logits, logits.detach()), logits)
    return gradient.abs().max().item()
