"""Closed forms and backward recursions of optima: what theory says that an expected update converges to.

A policy is log-probs [X, N, V + 1] of every token behind every prefix. No loss or gradient is used.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from prefdag.theory.world import World, prefixes

# Of log pi_ref [A] and Q [A] of one state: log pi [A].
Choice = Callable[[Tensor, Tensor], Tensor]
# Of log pi_ref, Q and log pi of one state: its value.
Value = Callable[[Tensor, Tensor, Tensor], Tensor]


def tilted(beta: float) -> Choice:
    """Return pi ~ pi_ref exp(Q / beta), the optimum of E Q - beta KL(pi || pi_ref)."""
    return lambda reference, q: (reference + q / beta).log_softmax(0)


def forward_kl(beta: float) -> Choice:
    """Return pi = beta pi_ref / (lam - Q), the optimum of E Q - beta KL(pi_ref || pi); lam makes it sum to 1."""

    def choose(reference: Tensor, q: Tensor) -> Tensor:
        # Bisection of lam - max Q: at 0 the sum is infinite, at beta it is at most 1.
        low, high, gaps = 0.0, beta, q.max() - q
        for _ in range(100):
            middle = (low + high) / 2
            large = (beta * reference.exp() / (middle + gaps)).sum() > 1
            low, high = (middle, high) if large else (low, middle)
        return reference + math.log(beta) - (high + gaps).log()

    return choose


def expected(reference: Tensor, q: Tensor, policy: Tensor) -> Tensor:
    """Return E_pi Q: a state's value where the KL is not part of the reward.

    Args:
        reference, policy: log-probs of the actions, [A].
        q: of the actions, [A].
    """
    return policy.exp() @ q


def soft(beta: float) -> Value:
    """Return E_pi Q - beta KL(pi || pi_ref): a state's value where the KL is part of the reward."""
    return lambda reference, q, policy: policy.exp() @ (q - beta * (policy - reference))


def backward(world: World, choose: Choice, value: Value, gamma: float = 1.0) -> Tensor:
    """Solve a world from its last tokens to its first: [X, N, V + 1].

    Q(s, a) is the reward of the response that token a completes, or gamma times the value of the state behind it.
    """
    states = prefixes(world.responses)
    place, complete = ({key: at for at, key in enumerate(keys)} for keys in (states, world.responses))
    policies = []
    for reward, reference in zip(world.reward, world.reference.log_softmax(-1), strict=True):
        result, values = torch.empty_like(reference), torch.zeros(len(states), dtype=torch.float64)
        for state in reversed(states):
            at, following = place[state], [(*state, token) for token in range(world.words + 1)]
            q = torch.stack(
                [reward[complete[key]] if key in complete else gamma * values[place[key]] for key in following]
            )
            result[at] = choose(reference[at], q)
            values[at] = value(reference[at], q, result[at])
        policies.append(result)
    return torch.stack(policies)
