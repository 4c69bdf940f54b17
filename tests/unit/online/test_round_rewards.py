"""Scores, labels and group advantages of a round, by hand."""

import pytest
import torch

from prefdag.config.online.methods import DrGRPO
from prefdag.config.online.settings import KL, MissingEnd, Online
from prefdag.online.rewards import Moments, labels_of, with_missing_ends
from prefdag.online.rollouts import Rollouts
from prefdag.online.targets import _reward_kl, targets_of

SCORES = torch.tensor([[1.0, 3.0], [2.0, 2.0]], dtype=torch.float64)
ENDED = torch.tensor([[True, False], [False, True]])


def test_a_response_without_end_is_scored_lower() -> None:
    def ruled(how: str) -> list[list[float]]:
        return with_missing_ends(SCORES, ENDED, MissingEnd(penalty=5.0, how=how)).tolist()  # type: ignore[arg-type]

    assert ruled("subtract") == [[1, -2], [-3, 2]]
    assert ruled("replace") == [[1, -5], [-5, 2]]
    for unchanged in (MissingEnd(how="mask"), None):
        assert with_missing_ends(SCORES, ENDED, unchanged).tolist() == SCORES.tolist()


def test_labels_by_hand() -> None:
    """Score gaps -2 and 0: hard labels give a tie to the first."""
    prompts = torch.tensor([4, 7])

    def labels(how: str, number: int = 0, scores: torch.Tensor = SCORES) -> torch.Tensor:
        settings = Online(reward="vader", labels=how)  # type: ignore[arg-type]
        return labels_of(scores, prompts[: len(scores)], number, settings)

    assert labels("hard").tolist() == [0, 1]
    assert labels("soft").tolist() == pytest.approx([torch.tensor(-2.0).sigmoid().item(), 0.5])
    draws = torch.stack([labels("bradley_terry", number) for number in range(400)])
    assert draws.mean(0).tolist() == pytest.approx([torch.tensor(-2.0).sigmoid().item(), 0.5], abs=0.08)
    equal = torch.zeros(40, 2, dtype=torch.float64)  # every prompt and round has a number of its own
    named = labels_of(equal, torch.arange(40), 0, Online(reward="vader", labels="bradley_terry"))
    assert 0 < named.mean().item() < 1


def test_running_moments_are_those_of_all_scores() -> None:
    parts = [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([10.0]), torch.tensor([-3.0, 0.5])]
    moments = Moments()
    for part in parts:
        moments = moments.updated(part)
    every = torch.cat(parts).double()
    assert moments.mean == pytest.approx(every.mean().item())
    assert moments.deviation == pytest.approx(every.std().item())
    scaled = moments.normalise(every, "scale")
    assert torch.allclose(scaled, every / every.std())
    assert torch.allclose(moments.normalise(every, "standard"), (every - every.mean()) / every.std())
    assert moments.normalise(every, "off") is every


def test_the_kl_is_in_the_reward_or_in_the_loss() -> None:
    tokens = torch.tensor([5, 6, 7])
    one = torch.ones(1, 1, dtype=torch.int64)
    rollouts = Rollouts(one[0], tokens, 3 * one, one > 0, torch.zeros(3).double(), old=torch.tensor([0.5, 0, -1]),
                        reference=torch.tensor([0.0, 1, -1]))  # fmt: skip
    in_reward = Online(reward="vader", kl=KL(coefficient=0.1, estimator="k1"))
    assert _reward_kl(in_reward, rollouts).tolist() == [0.5, -1, 0]
    in_loss = Online(reward="vader", kl=KL(coefficient=0.1, where="loss", estimator="k3"))
    assert _reward_kl(in_loss, rollouts).tolist() == [0, 0, 0]


def test_the_kl_lowers_a_groups_rewards() -> None:
    """Responses of 1 and 2 tokens, k1 of -1 and 3 nats in all; rewards 1 and 2 become 1.5 and 0.5: advantages +-0.5."""
    tokens = torch.tensor([0.0, 2, 1])
    rollouts = Rollouts(torch.tensor([0]), torch.tensor([5, 6, 7]), torch.tensor([[1, 2]]), torch.ones(1, 2) > 0,
                        torch.zeros(3).double(), old=tokens, reference=torch.tensor([1.0, 0, 0]))  # fmt: skip
    settings = Online(reward="vader", samples=2, kl=KL(coefficient=0.5))
    rewards = torch.tensor([[1.0, 2.0]]).double()
    targets = targets_of(DrGRPO(method="dr_grpo"), settings, rollouts, rewards, 0.5)
    assert targets.advantages.tolist() == [0.5, -0.5, -0.5]
