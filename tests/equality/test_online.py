"""On-policy training: interrupted equals uninterrupted, packed equals padded, two processes equal one."""

import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from comparisons import tiny, tiny_scorer
from on_policy import PROMPTS, ROWS, OnlineTrial, counted_token, online_training, state_of, watched
from prefdag.data.token_store import Comparison
from prefdag.errors import Stopped
from prefdag.models.naive import float64_norms, padded_rows, transformers_attention
from prefdag.online.loop import OnlineTraining
from prefdag.online.round import Round
from prefdag.training.checkpoint import Checkpoint
from ranks import crew


def points_of(name: str) -> list[str]:
    """Where the second round of a training may be interrupted."""
    training, points = online_training(ROWS[name]), list[str]()
    for number in range(2):
        points = list(training._phases(number))
    return points


class Dies(Exception):
    """The process is gone."""


def dying_at(training: OnlineTraining, number: int, at: int) -> None:
    """Raise at a point of round `number` once the state there is saved."""
    phases = training._phases

    def watched_phases(present: int) -> Any:
        for place, phase in enumerate(phases(present)):
            yield phase
            if present == number and place == at:
                raise Dies

    training._phases = watched_phases


POINTS = {"ppo": 6, "ppo shared": 3, "ppo one update": 2, "reinforce": 2, "rloo": 4, "grpo": 2, "dr_grpo": 2}
POINTS |= {"online dpo": 3, "online ipo": 4}
CASES = [(name, at) for name, number in POINTS.items() for at in range(number)]


@pytest.mark.parametrize(("name", "at"), CASES)
def test_killed_at_any_phase_and_resumed_is_uninterrupted(name: str, at: int, tmp_path: Path) -> None:
    """Round 2 dies after sampling, scoring, measuring or any update but the last; every bit is as without it."""
    whole = online_training(ROWS[name])
    expected = list(whole.rounds())
    killed = online_training(ROWS[name], Checkpoint(tmp_path, seconds_between=0))
    dying_at(killed, 1, at)
    with pytest.raises(Dies):
        list(killed.rounds())
    resumed = online_training(ROWS[name], Checkpoint(tmp_path, seconds_between=0))
    assert list(resumed.rounds()) == expected and len(expected) == 3
    theirs = state_of(whole)
    assert all(torch.equal(value, theirs[key]) for key, value in state_of(resumed).items())


def test_every_kind_of_point_is_interrupted() -> None:
    assert {name: len(points_of(name)) for name in ROWS} == POINTS
    assert points_of("ppo") == ["sampled", "scored", "measured", "updated", "updated", "updated"]
    assert points_of("ppo one update") == ["sampled", "scored"]


@pytest.mark.parametrize("name", [name for name in ROWS if name != "ppo one update"])
def test_log_probs_of_the_first_update_are_those_of_a_pass_before_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without whitening, whose means are of the round, in several micro-batches: every bit is equal."""
    row = {**ROWS[name], "minibatches": 1, "tokens_per_batch": 20}
    together = online_training(row)
    records = list(together.rounds())
    monkeypatch.setattr(Round, "_is_local", False)
    apart = online_training(row)
    measured = Mock(wraps=Round.measured)
    monkeypatch.setattr(Round, "measured", lambda *arguments: measured(*arguments))
    assert list(apart.rounds()) == records
    assert measured.call_count == len(records)
    theirs = state_of(apart)
    assert all(torch.equal(value, theirs[key]) for key, value in state_of(together).items())


def test_a_signal_saves_and_stops_in_the_middle_of_a_round(tmp_path: Path) -> None:
    """SIGTERM while a round is scored: the state is saved there, without waiting for it to be due."""
    whole = online_training(ROWS["ppo"])
    expected = list(whole.rounds())
    calls = []

    def scorer(compared: list[Comparison]) -> np.ndarray:
        calls.append(len(compared))
        if len(calls) == 3:  # the second call scores the answers to the fixed prompts
            os.kill(os.getpid(), signal.SIGTERM)
        return counted_token(compared)

    stopped = online_training(ROWS["ppo"], Checkpoint(tmp_path, seconds_between=1e9), scorer=scorer)
    with pytest.raises(Stopped):
        list(stopped.rounds())
    saved = Checkpoint(tmp_path).load()
    assert saved is not None and len(saved["history"]) == 1 and saved["progress"]["rewards"] is not None
    resumed = online_training(ROWS["ppo"], Checkpoint(tmp_path))
    assert list(resumed.rounds()) == expected


def test_the_sizes_of_batches_change_no_sample() -> None:
    """Which responses share a forward pass decides low bits alone, not which noise a response gets."""
    samples = []
    for size in (3, 8, 64):
        training = online_training({**ROWS["rloo"], "sampling_batch_size": size, "max_steps": 1}, dtype=torch.float64)
        phases = training._phases(0)
        next(phases)
        samples.append(training.progress.rollouts.ids.tolist())
    assert samples[0] == samples[1] == samples[2]


# An oracle of its own: every response in a padded row, loops over tokens, plain formulas.


def padded_states(trunk: Any, compared: list[Comparison]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states that predict each response token [S, L - 1, D], which of them do, and the tokens that follow."""
    tokens, mask, counted = padded_rows(compared)
    with transformers_attention(trunk):
        states = trunk.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    return states[:, :-1], counted[:, 1:], tokens[:, 1:]


def padded_logprobs(model: Any, compared: list[Comparison], temperature: float) -> tuple[Tensor, Tensor]:
    states, counted, following = padded_states(model, compared)
    logits = model.get_output_embeddings()(states) / temperature
    return logits.log_softmax(-1).gather(-1, following[..., None]).squeeze(-1), counted


def gae_by_hand(rewards: list[float], values: list[float], lam: float) -> list[float]:
    advantages = []
    for start in range(len(rewards)):
        total = 0.0
        for step in range(start, len(rewards)):
            after = values[step + 1] if step + 1 < len(values) else 0.0
            total += lam ** (step - start) * (rewards[step] + after - values[step])
        advantages.append(total)
    return advantages


Models = tuple[Any, Any, Any]


def three_models() -> Models:
    """Policy, a reference that differs from it, so that the KL is not 0, and a value head on its own trunk."""
    reference = tiny()
    for parameter in reference.parameters():
        parameter.data *= 1.05
    return tiny(), reference, tiny_scorer(seed=1)


def policy_and_kl(models: Models, compared: list[Comparison], temperature: float) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs of each response's tokens, with gradient, and their log-ratios to the reference, without."""
    logprobs, counted = padded_logprobs(models[0], compared, temperature)
    with torch.no_grad():
        other, _ = padded_logprobs(models[1], compared, temperature)
    rows = [(row[at], another[at]) for row, another, at in zip(logprobs, other, counted, strict=True)]
    return [one for one, _ in rows], [(one - another).detach() for one, another in rows]


def ppo_by_hand(models: Models, compared: list[Comparison], kl: float, lam: float, coefficient: float) -> Tensor:
    """The loss of PPO's first update: token means, squared errors of values to their returns."""
    logprobs, ratios = policy_and_kl(models, compared, 1.0)
    states, counted, _ = padded_states(models[2], compared)
    values = models[2].score(states).squeeze(-1)
    total, num = torch.zeros((), dtype=torch.float64), int(counted.sum())
    for row, score in enumerate(counted_token(compared).flatten()):
        v = values[row][counted[row]]
        rewards = (-kl * ratios[row]).tolist()
        rewards[-1] += score
        advantages = torch.tensor(gae_by_hand(rewards, v.tolist(), lam), dtype=torch.float64)
        rho = (logprobs[row] - logprobs[row].detach()).exp()
        total = total - (advantages * rho).sum() / num
        total = total + coefficient * ((v - (advantages + v.detach())) ** 2).sum() / 2 / num
    return total


def rloo_by_hand(models: Models, compared: list[Comparison], kl: float, temperature: float) -> Tensor:
    """The loss of RLOO's first update: a ratio for the whole response, the others' mean as the baseline."""
    logprobs, ratios = policy_and_kl(models, compared, temperature)
    rewards = [
        score - kl * ratio.sum().item() for score, ratio in zip(counted_token(compared).flatten(), ratios, strict=True)
    ]
    total = torch.zeros((), dtype=torch.float64)
    group = len(compared[0].responses)
    for row, logprob in enumerate(logprobs):
        first = row // group * group
        others = [rewards[other] for other in range(first, first + group) if other != row]
        advantage = rewards[row] - sum(others) / len(others)
        total = total - advantage * (logprob - logprob.detach()).sum().exp() / len(logprobs)
    return total


def grpo_by_hand(models: Models, compared: list[Comparison], kl: float) -> Tensor:
    """The loss of GRPO's first update: standardised scores, k3 in the loss, means of responses' token means."""
    logprobs, _ = policy_and_kl(models, compared, 1.0)
    with torch.no_grad():
        other, counted = padded_logprobs(models[1], compared, 1.0)
    scores, total = counted_token(compared), torch.zeros((), dtype=torch.float64)
    advantages = (scores - scores.mean(1, keepdims=True)) / (scores.std(1, ddof=1, keepdims=True) + 1e-4)
    for row, logprob in enumerate(logprobs):
        gap = other[row][counted[row]] - logprob
        tokens = -advantages.flatten()[row] * (logprob - logprob.detach()).exp() + kl * (gap.exp() - gap - 1)
        total = total + tokens.mean() / len(logprobs)
    return total


def dpo_by_hand(models: Models, compared: list[Comparison], beta: float) -> Tensor:
    """DPO of each pair, its label soft: the other order has the rest of the weight."""
    logprobs, _ = policy_and_kl(models, compared, 1.0)
    with torch.no_grad():
        other, counted = padded_logprobs(models[1], compared, 1.0)
    ratios = [one.sum() - other[row][counted[row]].sum() for row, one in enumerate(logprobs)]
    total = torch.zeros((), dtype=torch.float64)
    for pair, (first, second) in enumerate(counted_token(compared)):
        label = 1 / (1 + np.exp(second - first))
        gap = beta * (ratios[2 * pair] - ratios[2 * pair + 1])
        total = total - (label * gap.sigmoid().log() + (1 - label) * (-gap).sigmoid().log()) / len(compared)
    return total


ORACLES: dict[str, tuple[dict[str, Any], Any]] = {
    "ppo": (
        {"method": "ppo", "kl": 0.3, "lam": 0.9, "value_coefficient": 0.2},
        lambda *of: ppo_by_hand(*of, 0.3, 0.9, 0.2),
    ),
    "online dpo": ({"method": "dpo", "beta": 0.5, "online": {"labels": "soft"}}, lambda *of: dpo_by_hand(*of, 0.5)),
    "rloo": ({"method": "rloo", "samples": 3, "kl": 0.3, "temperature": 0.7}, lambda *of: rloo_by_hand(*of, 0.3, 0.7)),
    "grpo": (
        {"method": "grpo", "samples": 3, "kl": {"coefficient": 0.3, "where": "loss", "estimator": "k3"}},
        lambda *of: grpo_by_hand(*of, 0.3),
    ),
}  # fmt: skip


def first_update(row: dict[str, Any], budget: int) -> tuple[Tensor, list[Comparison]]:
    """The gradient of a training's first update, and its responses."""
    seen, rounds = list[Tensor](), list[Any]()
    settings = {**row, "tokens_per_batch": budget, "max_steps": 1}
    training = online_training(
        settings, dtype=torch.float64, on_round=lambda number, rollouts, seconds: rounds.append(rollouts)
    )
    policy, reference, _ = three_models()
    training.models.policy.load_state_dict(policy.state_dict())
    training.models.reference.load_state_dict(reference.state_dict())
    training.optimizers = watched(training, seen)
    list(training.rounds())
    return seen[0], rounds[0].comparisons(PROMPTS)


def gradient_of(models: Models, loss: Tensor) -> Tensor:
    loss.backward()
    parameters = [*models[0].parameters(), *models[2].parameters()]
    return torch.cat([one.grad.flatten() for one in parameters if one.grad is not None])


@pytest.mark.parametrize("budget", [30, 60, 4096], ids=["many packs", "some packs", "one pack"])
@pytest.mark.parametrize("name", ORACLES)
def test_a_packed_update_is_the_padded_one(name: str, budget: int) -> None:
    """Gradients of every parameter to 1e-9, whether old log-probs have a pass of their own or not."""
    row, by_hand = ORACLES[name]
    with float64_norms():
        gradient, compared = first_update(row, budget)
        models = three_models()
        expected = gradient_of(models, by_hand(models, compared))
    assert gradient.shape == expected.shape
    assert (gradient - expected).abs().max() < 1e-9 and expected.abs().max() > 1e-3


def test_a_broken_oracle_is_noticed() -> None:
    """Another lambda, or another KL, is far from the update."""
    with float64_norms():
        gradient, compared = first_update(ORACLES["ppo"][0], 60)
        for kl, lam in ((0.3, 0.8), (0.0, 0.9)):
            models = three_models()
            expected = gradient_of(models, ppo_by_hand(models, compared, kl, lam, 0.2))
            assert (gradient - expected).abs().max() > 1e-4


@pytest.fixture(scope="module")
def crews(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("crews")
    trials = {name: OnlineTrial(row) for name, row in ROWS.items()}
    return {size: crew(size, trials, folder) for size in (1, 2)}


@pytest.mark.parametrize("name", ROWS)
def test_two_processes_are_one(name: str, crews: dict[int, dict[str, list[dict[str, Any]]]]) -> None:
    """In float64 to 1e-9: gradients of every update, records and weights; all processes have the same bits."""
    (expected,) = crews[1][name]
    for result in crews[2][name]:
        assert len(result["gradients"]) == len(expected["gradients"])
        for one, other in zip(result["gradients"], expected["gradients"], strict=True):
            assert ((one - other).abs().max() / other.abs().max()).item() < 1e-9
        for one, other in zip(result["records"], expected["records"], strict=True):
            assert set(one) == set(other)
            assert max(abs(one[key] - other[key]) / max(1.0, abs(other[key])) for key in other) < 1e-9
        first = crews[2][name][0]["weights"]
        assert all(torch.equal(value, first[key]) for key, value in result["weights"].items())
        assert max((value - expected["weights"][key]).abs().max().item() for key, value in first.items()) < 1e-9
