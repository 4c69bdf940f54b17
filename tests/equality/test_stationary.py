"""At its optimum a neural policy stays where it is: a whole round of every method with the KL in the reward.

The reward is beta log(policy / reference) plus a number for each prompt, so pi* of that reward is the policy itself.
With the KL in it the reward of every response is that number, and the exact value before a token is that number plus
beta times the log-ratio of the tokens before it: every advantage is 0, not only their mean.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comparisons import EOS, tiny
from on_policy import online_training, state_of
from prefdag.data.token_store import Comparison
from prefdag.models.logprobs import logprobs
from prefdag.models.naive import float64_norms
from prefdag.models.packing import Segments, pack
from prefdag.online.critic import Critic
from prefdag.online.loop import OnlineTraining
from prefdag.online.round import Models

BETA = 0.3
GROUP = {"samples": 3, "minibatches": 2}
ROWS: dict[str, dict[str, Any]] = {
    "reinforce": {"method": "reinforce", "baseline": "learned"},
    "rloo": {"method": "rloo", "epochs": 2, **GROUP},
    "dr_grpo": {"method": "dr_grpo", "epochs": 2, **GROUP},
    # Of deviations of 1e-16 an epsilon of 1e-4 would make advantages of 1e-12.
    "grpo": {"method": "grpo", "epsilon": 1.0, **GROUP},
    "grpo by tokens": {"method": "grpo", "epsilon": 1.0, "aggregation": "dapo", **GROUP},
    "ppo": {"method": "ppo", "lam": 1.0, "epochs": 3, "minibatches": 2},
    "ppo with lambda": {"method": "ppo", "lam": 0.9, "epochs": 2, "samples": 2},
    "online dpo": {"method": "dpo", "beta": BETA, "online": {"labels": "soft"}},
}


class World:
    """A policy that is pi* of its reward; `shift` is added to the reward of tokens below 20 and moves pi*."""

    def __init__(self, shift: float = 0.0) -> None:
        self.policy, self.reference, self.shift = tiny(), tiny(), shift
        for parameter in self.reference.parameters():
            parameter.data *= 1.3

    def ratios(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """Beta times the log-ratio of each token [T], and its response [T]."""
        with torch.no_grad():
            policy, reference = (logprobs(model, segments) for model in (self.policy, self.reference))
        return BETA * (policy.tokens - reference.tokens), policy.owner

    def scores(self, compared: Sequence[Comparison]) -> np.ndarray:
        rows = []
        for one in compared:
            values, owner = self.ratios(pack([one], [[0]]))
            total = torch.zeros(len(one.responses), dtype=torch.float64).index_add(0, owner, values)
            shift = np.array([self.shift * (ids < 20).sum() for ids in one.responses])
            rows.append(constant(one.prompt) + total.numpy() + shift)
        return np.array(rows)


def constant(prompt: Any) -> float:
    return float(prompt[0]) / 10


class ExactCritic(Critic):
    """The exact value before each token, plus a linear layer of the policy's states that starts at 0 and is trained."""

    def __init__(self, world: World) -> None:
        head = nn.Linear(16, 1, bias=False, dtype=torch.float64)
        head.weight.data.zero_()
        super().__init__(head, behind=False)
        object.__setattr__(self, "world", world)

    def __call__(self, segments: Segments, policy_states: Tensor) -> Tensor:
        values, owner = self.world.ratios(segments)
        before = torch.cat([torch.zeros(1, dtype=torch.float64), values.cumsum(0)[:-1]])
        first = torch.cat([torch.ones(1, dtype=torch.bool), owner[1:] != owner[:-1]])
        _, number = torch.unique_consecutive(owner, return_inverse=True)
        within = before - before[first][number]
        prompts = torch.tensor([self.first_token(segments, index) for index in range(segments.shape[0])])
        numbers = prompts.double()[owner // segments.shape[1]] / 10
        return within + numbers + self.module(policy_states).squeeze(-1)

    @staticmethod
    def first_token(segments: Segments, comparison: int) -> int:
        at = (segments.comparison == comparison) & (segments.response == 0) & (segments.positions == 0)
        return int(segments.tokens[at][0])


def training_at_optimum(row: dict[str, Any], world: World) -> OnlineTraining:
    # Adam divides gradients of 1e-16 by its epsilon of 1e-8, so it takes their rounding for gradients of 1e-8.
    settings = {"max_steps": 1, "learning_rate": 1e-6, "schedule": "constant", "sample_table": 0}
    if row["method"] != "dpo":
        settings["kl"] = BETA
    if row["method"] in ("ppo", "reinforce"):
        settings["value_learning_rate"] = 1e-8
    training = online_training({**row, **settings}, dtype=torch.float64, scorer=world.scores)
    policy, critic = tiny().train(), training.models.critic and ExactCritic(world)
    models = Models(policy, world.reference.requires_grad_(False), critic)
    return OnlineTraining(
        models, training.method, training.settings, training.prompts, world.scores, EOS, pair_loss=training.pair_loss
    )


def largest_move(row: dict[str, Any], shift: float) -> tuple[float, dict[str, float]]:
    """How far a round moves any parameter of policy and value head, and the round's metrics."""
    with float64_norms():
        training = training_at_optimum(row, World(shift))
        before = {name: value.clone() for name, value in state_of(training).items()}
        (record,) = list(training.rounds())
    moves = [(value - before[name]).abs().max().item() for name, value in state_of(training).items()]
    return max(moves), record.metrics


@pytest.mark.parametrize("name", ROWS)
def test_a_round_at_the_optimum_moves_no_parameter(name: str) -> None:
    """To 1e-12, where the policy is far from the reference and scores vary; a shifted reward moves it at once."""
    move, metrics = largest_move(ROWS[name], 0.0)
    assert move < 1e-12
    assert metrics["score_std"] > 0.1 and metrics["kl"] > 0.1 and metrics.get("advantage_std", 0) < 1e-10
    moved, _ = largest_move(ROWS[name], 0.01)
    assert moved > 5e-7
