"""Numbers of a round against plain loops: signs of divergences, errors over prompts, the controller, random streams."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from on_policy import PROMPTS, ROWS, online_training
from prefdag.losses.policy_gradient import adapted_coefficient
from prefdag.online import objective, report, targets
from prefdag.online.objective import Inputs
from prefdag.online.rewards import labels_of
from prefdag.online.rollouts import Rollouts, prompts_of_round, sample_round
from prefdag.online.round import Round

LENGTHS = torch.tensor([[2, 4], [1, 3], [5, 2]])


def values(seed: int) -> Tensor:
    return torch.randn(int(LENGTHS.sum()), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def rollouts() -> Rollouts:
    """Three prompts of two responses with random log-probs under policy and reference."""
    ended = torch.ones_like(LENGTHS, dtype=torch.bool)
    ids = torch.zeros(int(LENGTHS.sum()), dtype=torch.int64)
    old, reference, kl = values(0), values(1), values(2).abs()
    return Rollouts(torch.arange(3), ids, LENGTHS, ended, old.double(), old=old, reference=reference, kl=kl)


def settings_of(name: str, **row: Any) -> Any:
    return online_training({**ROWS[name], **row}).settings


def by_response(tokens: Tensor) -> list[list[float]]:
    return [part.tolist() for part in tokens.double().split(LENGTHS.flatten().tolist())]


def test_the_divergence_of_a_round_is_that_of_plain_loops(rollouts: Rollouts) -> None:
    """KL(policy || reference) of whole responses; errors over the means of three prompts, not over six responses."""
    columns: dict[str, list[float]] = {"kl": [], "k1": [], "k2": [], "k3": []}
    assert rollouts.old is not None and rollouts.reference is not None and rollouts.kl is not None
    for policy, reference, kl in zip(*map(by_response, (rollouts.old, rollouts.reference, rollouts.kl)), strict=True):
        ratios = [p - q for p, q in zip(policy, reference, strict=True)]
        columns["kl"].append(sum(kl))
        columns["k1"].append(sum(ratios))
        columns["k2"].append(sum(ratio**2 / 2 for ratio in ratios))
        columns["k3"].append(sum(math.exp(-ratio) - 1 + ratio for ratio in ratios))
    metrics = report._divergence(rollouts) | report.further_metrics(rollouts, [], settings_of("ppo", epochs=1))
    for name, each in columns.items():
        assert metrics[name] == pytest.approx(sum(each) / 6, rel=1e-6), name
        means = [(each[at] + each[at + 1]) / 2 for at in (0, 2, 4)]
        middle = sum(means) / 3
        error = math.sqrt(sum((mean - middle) ** 2 for mean in means) / 2 / 3)
        assert metrics[f"{name}_se"] == pytest.approx(error, rel=1e-6), name


def test_divergence_costs_reward(rollouts: Rollouts) -> None:
    """Of equal rewards the response that is further from the reference has the lower advantage."""
    training = online_training({**ROWS["rloo"], "samples": 2})
    estimated = targets._reward_kl(training.settings, rollouts)
    assert rollouts.old is not None and rollouts.reference is not None
    if training.settings.kl.estimator == "k1":
        assert torch.equal(estimated, rollouts.old.double() - rollouts.reference.double())
    rewards = torch.ones(3, 2, dtype=torch.float64)
    result = targets.targets_of(training.method, training.settings, rollouts, rewards, 0.5)
    totals = torch.tensor([sum(part) for part in by_response(estimated)]).view(3, 2)
    firsts = LENGTHS.flatten().cumsum(0) - LENGTHS.flatten()
    expected = -0.5 * (totals - totals.flip(1))
    assert torch.allclose(result.advantages[firsts].view(3, 2), expected.double(), atol=1e-6)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_a_divergence_in_reward_and_loss_is_of_the_policy_from_the_reference(name: str, rollouts: Rollouts) -> None:
    ratio = (values(0) - values(1)).double()
    expected = {"k1": ratio, "k2": ratio**2 / 2, "k3": torch.exp(-ratio) - 1 + ratio}[name]
    inputs = Inputs([0, 1, 2], torch.zeros(0), values(0).double(), None, None, None)
    in_loss = objective._loss_kl(name, inputs, values(0).double(), values(1).double())
    settings: Any = SimpleNamespace(kl=SimpleNamespace(where="reward", estimator=name))
    assert torch.allclose(in_loss, expected, atol=1e-6)
    assert torch.allclose(targets._reward_kl(settings, rollouts), expected, atol=1e-6)


def test_accuracy_and_margin_are_of_the_preferred_response(rollouts: Rollouts) -> None:
    """Labels 0, 1 and 0: the margin of the first and the third pair is that of their second response."""
    labelled = rollouts.with_values(labels=torch.tensor([0.0, 1.0, 0.0]))
    owner = torch.arange(6).repeat_interleave(LENGTHS.flatten())
    inputs = Inputs([0, 1, 2], owner, values(0), None, None, None)
    _, metrics = objective._pairs(lambda policy, reference: policy.total[:, 0], inputs, values(1), labelled)
    totals = [sum(part) for part in by_response(values(0) - values(1))]
    gaps = [totals[1] - totals[0], totals[2] - totals[3], totals[5] - totals[4]]
    assert metrics["margin"] == pytest.approx(sum(gaps), rel=1e-5)
    assert metrics["accuracy"] == sum(gap > 0 for gap in gaps) and metrics["pairs"] == 3


def test_the_controller_follows_the_rounds_divergence() -> None:
    """Each round's coefficient is that of the one before, moved by its exact KL, its responses and the horizon.

    The target is a tenth below the KL of round 2, so that nothing is clipped there and another estimate would show.
    """
    row = {"method": "rloo", "samples": 3, "max_steps": 3}

    def rounds(target: float) -> list[dict[str, float]]:
        kl = {"target": target, "horizon": 400}
        return [record.metrics for record in online_training({**row, "kl": kl}).rounds()]

    target = rounds(1.0)[1]["kl"] / 1.1
    records = rounds(target)
    for before, after in zip(records, records[1:], strict=False):
        change = after["kl_coefficient"] / before["kl_coefficient"] - 1
        error = min(max(before["kl"] / target - 1, -0.2), 0.2)
        assert change == pytest.approx(error * 5 * 3 / 400, rel=1e-9)
    assert records[1]["kl"] / target == pytest.approx(1.1)
    assert abs(records[1]["k1"] - records[1]["kl"]) > 1e-3 * target


def test_the_controller_raises_the_coefficient_above_the_target() -> None:
    """Of ten responses and a horizon of 100: 20 % too much raises it by 2 %, half of the target lowers it by 2 %."""
    options = {"target": 0.5, "horizon": 100, "batch_size": 10}
    assert adapted_coefficient(1.0, 0.6, **options) == pytest.approx(1.02)
    assert adapted_coefficient(1.0, 0.25, **options) == pytest.approx(0.98)
    assert adapted_coefficient(1.0, 0.55, **options) == pytest.approx(1.01)


def test_every_stream_of_random_numbers_differs_between_rounds_and_seeds() -> None:
    """Sampled labels, the order of prompts, and the parts of a round."""
    plain = settings_of("online dpo", epochs=2, minibatches=2)
    seeds = [plain.model_copy(update={"seed": seed}) for seed in (0, 1)]
    labels = [
        tuple(labels_of(torch.zeros(40, 2), torch.arange(40), number, settings).tolist())
        for settings in seeds
        for number in (0, 1, 2)
    ]
    assert len(set(labels)) == 6 and all(set(each) == {0.0, 1.0} for each in labels)
    passes = [
        tuple(prompt for number in range(3 * at, 3 * at + 3) for prompt in prompts_of_round(number, 12, 4, seed))
        for seed in (0, 1)
        for at in (0, 1, 2)
    ]
    assert len(set(passes)) == 6 and all(sorted(each) == list(range(12)) for each in passes)

    def members(settings: Any, number: int, update: int) -> tuple[int, ...]:
        return tuple(Round.members(SimpleNamespace(settings=settings, number=number, comparisons=range(20)), update))  # type: ignore[arg-type]

    parts = [members(settings, number, update) for settings in seeds for number in (0, 1) for update in range(4)]
    assert len(set(parts)) == 16
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        assert sorted(first + second) == list(range(20))


def test_every_round_samples_a_prompt_with_other_noise() -> None:
    """The names of the noise of three rounds: none twice, and those of a round again if it is sampled again."""
    training = online_training(ROWS["rloo"])
    names: list[list[str]] = []

    class Noted:
        shares = True

        def __call__(self, ids: Any, keys: list[str], sampling: Any, title: str) -> Any:
            names[-1] += keys
            return training.own_sampler(ids, keys, sampling, title)

    for number in (0, 1, 2, 1):
        names.append([])
        sample_round(Noted(), PROMPTS, number, training.settings)  # type: ignore[arg-type]
    assert len({name for each in names[:3] for name in each}) == 15 and names[3] == names[1]


def test_an_updates_loss_is_the_sum_of_its_parts_with_their_signs(rollouts: Rollouts) -> None:
    """REINFORCE: -A log p, plus 0.3 KL, minus 0.5 times the entropy; each token has its weight."""
    kl = {"coefficient": 0.3, "where": "loss", "estimator": "k2"}
    training = online_training({"method": "reinforce", "entropy": 0.5, "kl": kl})
    advantages, weights, entropy = values(3).double(), values(4).double().abs(), values(5).double().abs()
    ones = torch.ones(len(weights), dtype=torch.float64)
    aims = targets.Targets(advantages, ones, torch.ones(6, dtype=torch.float64), None, None, {})
    owner = torch.arange(6).repeat_interleave(LENGTHS.flatten())
    logprobs = values(0).double()
    inputs = Inputs([0, 1, 2], owner, logprobs, None, entropy, None)
    loss, metrics = objective.micro_batch_loss(
        training.method, training.settings, inputs, rollouts, aims, objective.Normaliser(weights, 1.0), 0.3
    )
    ratio = logprobs - values(1).double()
    expected = {
        "policy_loss": -(weights * advantages * logprobs).sum().item(),
        "kl_loss": 0.3 * (weights * ratio**2 / 2).sum().item(),
        "entropy_loss": -0.5 * (weights * entropy).sum().item(),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert loss.item() == metrics["loss"] == pytest.approx(sum(expected.values()), rel=1e-9)
