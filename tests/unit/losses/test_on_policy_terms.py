"""Terms of on-policy losses against plain loops and numbers derived by hand."""

import math

import pytest
import torch

from prefdag.losses import advantages as adv
from prefdag.losses import policy_gradient as pg

MASK = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.float64)
REWARDS = torch.tensor([[1.0, -2, 3, 9], [0.5, 4, 9, 9]], dtype=torch.float64)
VALUES = torch.tensor([[0.3, -0.4, 0.7, 9], [1.1, 0.2, 9, 9]], dtype=torch.float64)


def test_gae_is_the_sum_of_discounted_errors() -> None:
    """A_t = sum_k (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t; V is 0 behind the last token."""
    gamma, lam = 0.9, 0.6
    result, returns = adv.gae(REWARDS, VALUES, MASK, gamma=gamma, lam=lam)
    for row, length in enumerate((3, 2)):
        values = [*VALUES[row, :length].tolist(), 0.0]
        errors = [REWARDS[row, t].item() + gamma * values[t + 1] - values[t] for t in range(length)]
        for t in range(length):
            wanted = sum((gamma * lam) ** k * errors[t + k] for k in range(length - t))
            assert result[row, t].item() == pytest.approx(wanted)
            assert returns[row, t].item() == pytest.approx(wanted + values[t])
    assert (result[MASK == 0] == 0).all() and (returns[MASK == 0] == 0).all()


def test_a_cut_response_continues_with_its_bootstrap() -> None:
    result, _ = adv.gae(REWARDS, VALUES, MASK, gamma=0.9, lam=0.0, bootstrap=torch.tensor([2.0, 5.0]).double())
    assert result[0, 2].item() == pytest.approx(3 + 0.9 * 2 - 0.7)
    assert result[1, 1].item() == pytest.approx(4 + 0.9 * 5 - 0.2)


def test_rewards_to_go_and_baselines() -> None:
    returns = adv.rewards_to_go(torch.where(MASK > 0, REWARDS, 0.0), MASK, gamma=0.5)
    assert returns.tolist() == [[1 - 1 + 0.75, -2 + 1.5, 3, 0], [0.5 + 2, 4, 0, 0]]
    less = adv.subtract_baseline(returns, torch.tensor([1.0, 2.0]).double(), MASK)
    assert less.tolist() == [[-0.25, -1.5, 2, 0], [0.5, 2, 0, 0]]


def test_the_score_is_on_the_last_token_or_behind_it() -> None:
    scores, kl = torch.tensor([10.0, 20.0]).double(), torch.ones(2, 4).double()
    at = adv.token_rewards(scores, kl, MASK, coefficient=0.5)
    assert at.tolist() == [[-0.5, -0.5, 9.5, 0], [-0.5, 19.5, 0, 0]]
    behind = adv.token_rewards(scores, kl, MASK, coefficient=0.5, score_at="after_eos")
    assert behind.tolist() == [[-0.5, -0.5, -0.5, 10], [-0.5, -0.5, 20, 0]]
    full = adv.token_rewards(scores[:1], kl[:1, :2], torch.ones(1, 2), coefficient=0.5, score_at="after_eos")
    assert full.tolist() == [[-0.5, 9.5]]  # no position is behind a full row
    assert adv.value_mask(MASK, "after_eos").tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert adv.value_mask(MASK).equal(MASK)


def test_a_missing_end_is_penalised() -> None:
    scores, ended = torch.tensor([1.0, 2.0]), torch.tensor([True, False])
    assert adv.missing_eos(scores, ended, how="subtract", value=5.0).tolist() == [1, -3]
    assert adv.missing_eos(scores, ended, how="replace", value=-1.0).tolist() == [1, -1]


def test_group_advantages_by_hand() -> None:
    """Scores 1, 2, 6: mean 3; the means of the other two are 4, 3.5 and 1.5; the variance over n - 1 is 7."""
    scores = torch.tensor([[1.0, 2, 6], [0, 0, 3]]).double()
    assert adv.group_mean(scores)[0].tolist() == [-2, -1, 3]
    assert adv.leave_one_out(scores)[0].tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])
    normalised = adv.group_normalised(scores, eps=0.5)[0].tolist()
    assert normalised == pytest.approx([x / (math.sqrt(7) + 0.5) for x in (-2, -1, 3)])
    of_n = adv.group_normalised(scores, eps=0.0, ddof=0)[0, 2].item()
    assert of_n == pytest.approx(3 / math.sqrt(14 / 3))
    batch = adv.group_normalised(scores, eps=0.0, scale="batch")[1, 2].item()
    assert batch == pytest.approx(2 / scores.std().item())
    assert adv.leave_one_out(torch.tensor([[3.0]])).tolist() == [[0.0]]


def test_whitening_counts_tokens_alone() -> None:
    counted = VALUES[MASK > 0]
    result = adv.whiten(VALUES, MASK, eps=0.0)
    assert result[MASK > 0].mean().item() == pytest.approx(0, abs=1e-12)
    assert result[MASK > 0].std().item() == pytest.approx(1)
    assert (result[MASK == 0] == 0).all()
    assert adv.whiten(VALUES, MASK, ddof=0, eps=0.0)[MASK > 0].std(correction=0).item() == pytest.approx(1)
    still = adv.whiten(VALUES, MASK, shift_mean=False, eps=0.0)[MASK > 0]
    assert still.mean().item() == pytest.approx(counted.mean().item())
    assert adv.whiten(VALUES, MASK, eps=3.0)[MASK > 0].std().item() < 1


def test_weights_of_tokens_by_hand() -> None:
    """Responses of 1 and 3 tokens."""
    counts = torch.tensor([1.0, 3.0]).double()
    wanted = {
        "token_mean": [1 / 4, 1 / 4],
        "sequence_mean": [1 / 2, 1 / 6],
        "sequence_sum": [1 / 2, 1 / 2],
        "constant": [1 / 20, 1 / 20],
    }
    for how, weights in wanted.items():
        assert pg.token_weights(counts, how, max_length=10).tolist() == pytest.approx(weights)  # type: ignore[arg-type]
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 1]]).double()
    values = torch.tensor([[4.0, 100, 100], [1, 2, 3]]).double()
    assert pg.aggregate(values, mask, "sequence_mean").item() == pytest.approx((4 + 2) / 2)
    assert pg.aggregate(values, mask, "token_mean").item() == pytest.approx(10 / 4)


def test_clipping_by_hand() -> None:
    """Ratios 2 and 1/2 with advantages of both signs; the range is [0.8, 1.3]."""
    logprob = torch.tensor([2.0, 2.0, 0.5, 0.5]).log().double()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    old = torch.zeros(4).double()
    loss = pg.ppo_policy(logprob, old, advantage, clip_low=0.2, clip_high=0.3)
    assert loss.tolist() == pytest.approx([-1.3, 2.0, -0.5, 0.8])
    assert pg.clipped_tokens(logprob, old, advantage, clip_low=0.2, clip_high=0.3).tolist() == [1, 0, 0, 1]
    dual = pg.ppo_policy(logprob, old, advantage, clip_low=0.2, dual_clip=1.5)
    assert dual.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8])
    assert pg.reinforce(logprob, advantage)[0].item() == pytest.approx(-math.log(2))


def test_the_value_loss_is_clipped_around_the_old_value() -> None:
    """V 3 clips to 1.2; R 0: the larger error is the unclipped one, and R 4: the clipped one."""
    values, old, returns = (torch.tensor(one).double() for one in ([3.0, 3.0], [1.0, 1.0], [0.0, 4.0]))
    assert pg.ppo_value(values, old, returns, clip=0.2).tolist() == pytest.approx([4.5, (4 - 1.2) ** 2 / 2])
    assert pg.ppo_value(values, old, returns, clip=None).tolist() == pytest.approx([4.5, 0.5])


def test_estimators_of_the_kl_by_hand() -> None:
    """p = 1/2 and p_ref = 1/8: x = log 4, k2 = x^2 / 2, k3 = 1/4 - 1 + log 4."""
    logprob = torch.tensor([0.5]).double().log().requires_grad_()
    reference, x = torch.tensor([0.125]).double().log(), math.log(4)
    assert pg.kl_k1(logprob, reference).item() == pytest.approx(x)
    assert pg.kl_k2(logprob, reference).item() == pytest.approx(x**2 / 2)
    assert pg.kl_k3(logprob, reference).item() == pytest.approx(-0.75 + x)
    both = pg.kl_k3_straight_through(logprob, reference)
    assert both.item() == pytest.approx(-0.75 + x)
    assert torch.autograd.grad(both, logprob)[0].item() == pytest.approx(x)  # k2's
    weighted = pg.importance_weighted(pg.kl_k3(logprob, reference), logprob, logprob.detach())
    assert torch.autograd.grad(weighted, logprob)[0].item() == pytest.approx(x)  # k3 + its own gradient, 1 - 1/4


def test_sums_over_the_vocabulary_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]).double().log(), torch.tensor([0.25, 0.5, 0.25]).double().log()
    assert pg.kl_full(p, q).item() == pytest.approx(0.5 * math.log(2))
    assert pg.entropy(p).item() == pytest.approx(math.log(2))


def test_explained_variance_of_counted_tokens() -> None:
    returns = torch.tensor([1.0, 3.0, 99.0]).double()
    mask = torch.tensor([1.0, 1.0, 0.0]).double()
    assert pg.explained_variance(returns.clone(), returns, mask).item() == 1
    assert pg.explained_variance(torch.full((3,), 2.0).double(), returns, mask).item() == pytest.approx(0)
    assert pg.explained_variance(torch.tensor([1.0, 2.0, 0.0]).double(), returns, mask).item() == pytest.approx(0.5)


def test_the_coefficient_follows_the_kl_within_a_fifth() -> None:
    change = {"target": 6.0, "horizon": 100.0, "batch_size": 50}
    assert pg.adapted_coefficient(0.1, 6.6, **change) == pytest.approx(0.1 * (1 + 0.1 * 0.5))
    assert pg.adapted_coefficient(0.1, 60.0, **change) == pytest.approx(0.1 * (1 + 0.2 * 0.5))
    assert pg.adapted_coefficient(0.1, 0.0, **change) == pytest.approx(0.1 * (1 - 0.2 * 0.5))
