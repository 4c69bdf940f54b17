"""D2PO in worlds that can be enumerated: a reward model fitted to gold labels in each round, then DPO by its scores."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prefdag.config.objectives import objective
from prefdag.config.optimum import preference_optimum
from prefdag.losses.reward_model import bradley_terry
from prefdag.theory.online_pairs import online
from prefdag.theory.solve import pair_weights
from prefdag.theory.stated_worlds import read_worlds
from prefdag.theory.world import World

WORLDS = Path(__file__).parents[2] / "golden/enumerable_worlds.json"
BETA = 0.9


@pytest.fixture(scope="module", params=["bandit", "token"])
def world(request: pytest.FixtureRequest) -> World:
    return read_worlds(WORLDS)[request.param].world


def fitted(world: World, sampler: Tensor, steps: int = 40) -> Tensor:
    """Return the rewards [X, Y] that minimise the expected Bradley-Terry loss on gold-labelled pairs of a sampler.

    Newton's method from 0; a reward is known up to a constant of the prompt, which the pseudoinverse leaves at 0.
    """
    weights = pair_weights(sampler, world.preferred)

    def loss(rewards: Tensor) -> Tensor:
        rewards = rewards.view_as(world.reward)
        shape = weights.shape
        both = torch.stack([rewards[:, :, None].expand(shape), rewards[:, None, :].expand(shape)], -1)
        return (weights * bradley_terry(both)).sum()

    values = torch.zeros(world.reward.numel(), dtype=torch.float64)
    for _ in range(steps):
        gradient, curvature = torch.func.grad(loss)(values), torch.func.hessian(loss)(values)
        values = values - torch.linalg.pinv(curvature, hermitian=True, rtol=1e-9) @ gradient
    return values.view_as(world.reward)


def test_a_discriminator_of_gold_labels_is_the_gold_reward(world: World):
    """Up to a constant of the prompt, whatever policy the pairs are samples of."""
    for sampler in (world.log_reference.exp(), world.optimum(0.5).exp()):
        difference = fitted(world, sampler) - world.reward
        assert (difference - difference[:, :1]).abs().max() < 1e-8


@pytest.mark.parametrize("rounds", [1, 3])
def test_d2po_reaches_the_optimum_of_the_gold_reward(world: World, rounds: int):
    """Each round: gold labels of the policy's pairs, a reward model, soft labels by it, DPO against the last round."""
    loss = objective({"method": "dpo", "beta": BETA}, "test", "row")
    start, logits = world, None
    for _ in range(rounds):
        policy = world.log_reference if logits is None else world.log_policy(logits)
        guided = replace(start, reward=fitted(world, policy.exp()))
        logits = online(guided, loss, "bradley_terry", start=logits).logits
        start = replace(start, reference=logits)
    theory = world.optimum(BETA / rounds)
    assert (world.log_policy(logits).exp() - theory.exp()).abs().max() < 1e-6
    stated = preference_optimum("dpo", labels="soft", rounds=rounds, reference="round", gold="bradley_terry")
    assert stated.sentence.startswith(f"pi*(beta{f' / {rounds}' if rounds > 1 else ''}) of the reward model")
    assert not stated.warning


def test_hard_labels_have_no_interior_optimum(world: World):
    """Hard labels of the pairs drift to the largest reward, however good the reward model is."""
    loss = objective({"method": "dpo", "beta": BETA}, "test", "row")
    guided = replace(world, reward=fitted(world, world.log_reference.exp()))
    result = online(guided, loss, "hard")
    best = result.log_policy.exp().gather(1, world.reward.argmax(1, keepdim=True))
    assert best.min() > 0.99
    for gold in ("hard", "bradley_terry"):
        assert preference_optimum("dpo", labels="hard", gold=gold).warning


def test_gold_labels_without_noise_say_the_order_alone():
    stated = preference_optimum("dpo", labels="soft", gold="hard").sentence
    assert "gold labels without noise say the order, not the distance" in stated
