"""Pair losses on pairs that the policy itself draws, by expected updates and in rounds."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from prefdag.config.objectives import Objective
from prefdag.evaluation.sampling_laws import best_of_n
from prefdag.theory.expected import follow
from prefdag.theory.solve import Minimum, comparison_losses, pair_weights, pairs
from prefdag.theory.world import World

Labels = Literal["bradley_terry", "hard"]


def preferred(world: World, labels: Labels) -> Tensor:
    """Return the probability that y is labelled better than y' [X, Y, Y]; hard: the larger reward, ties half."""
    if labels == "bradley_terry":
        return world.preferred
    return (1 + torch.sign(world.reward[:, :, None] - world.reward[:, None, :])) / 2


def online(world: World, objective: Objective, labels: Labels, start: Tensor | None = None) -> Minimum:
    """Follow the expected updates of a pair loss on two independent samples of the policy.

    With Bradley-Terry labels the updates are those of soft labels, too: they are linear in the label's probability.

    Args:
        world: the enumerable world.
        objective: the pair loss.
        labels: how a pair is labelled.
        start: logits to begin with; None: the reference's.
    """
    values, right = comparison_losses(world, objective, pairs(world)), preferred(world, labels)

    def update(logits: Tensor) -> tuple[Tensor, float]:
        weights = pair_weights(world.log_policy(logits).exp(), right).flatten()
        varied = logits.clone().requires_grad_()
        loss = weights @ values(varied, logits)
        (gradient,) = torch.autograd.grad(loss, varied)
        return gradient, loss.item()

    return follow(world, update, start)


def iterated(world: World, objective: Objective, labels: Labels, rounds: int, moving: bool) -> Minimum:
    """Train `rounds` times to convergence; `moving`: the reference of a round is the policy before it."""
    result, start = online(world, objective, labels), world
    for _ in range(rounds - 1):
        start = replace(world, reference=result.logits) if moving else start
        result = online(start, objective, labels, start=result.logits)
    return replace(result, log_policy=world.log_policy(result.logits))


def distilled_best_of_n(world: World, n: int, rounds: int = 1) -> Tensor:
    """Return the log-law [X, Y] of the best of n, distilled and sampled again in every round (RAFT)."""
    laws = []
    for chance, reward in zip(world.log_reference.exp(), world.reward, strict=True):
        for _ in range(rounds):
            chance = best_of_n(chance, reward, n)
        laws.append(chance)
    return torch.stack(laws).log()
