"""On-policy methods in worlds that can be enumerated: expected updates, stationarity at the optimum, and samples."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import ROOT
from prefdag.cli.main import main
from prefdag.config.exact_policy import ExactPolicy, exact_policy
from prefdag.config.objectives import objective
from prefdag.config.optimum import FINITE, UNBOUNDED, policy_gradient_optimum, preference_optimum
from prefdag.errors import UserError
from prefdag.losses import advantages as adv
from prefdag.losses import policy_gradient as pg
from prefdag.theory.expected import Padded, converge
from prefdag.theory.online_pairs import distilled_best_of_n, iterated, online
from prefdag.theory.predictions import backward, expected, forward_kl, soft, tilted
from prefdag.theory.stated_worlds import StatedWorld, read_worlds, summary
from prefdag.theory.world import World

WORLDS = Path(__file__).parents[2] / "golden/enumerable_worlds.json"
CLOSE = 1e-9


@pytest.fixture(scope="module")
def worlds() -> dict[str, StatedWorld]:
    return read_worlds(WORLDS)


@pytest.fixture(scope="module")
def token(worlds: dict[str, StatedWorld]) -> World:
    return worlds["token"].world


@pytest.fixture(scope="module")
def bandit(worlds: dict[str, StatedWorld]) -> World:
    return worlds["bandit"].world


def flat(values: Any) -> list[float]:
    return [number for value in values for number in flat(value)] if isinstance(values, list) else [values]


def reached(world: World, **row: Any) -> Tensor:
    """Token policy after expected updates."""
    return converge(world, ExactPolicy(**row)).logits.softmax(-1)


def off(world: World, theory: Tensor, **row: Any) -> float:
    return (reached(world, **row) - theory.exp()).abs().max().item()


@pytest.mark.parametrize("name", ["bandit", "token"])
def test_every_method_reaches_the_policy_of_a_stated_world(worlds: dict[str, StatedWorld], name: str) -> None:
    """Policies that another program reached, by the file's names, and theory's closed forms, to 1e-9."""
    stated = json.loads(WORLDS.read_text())[name]
    result = summary(worlds[name])
    for method, policy in stated["converges_to"].items():
        assert flat(result["converges_to"][method]) == pytest.approx(flat(policy), abs=CLOSE), method
    assert max(result["max_abs_dev_from_theory"].values()) < CLOSE
    assert len(result["max_abs_dev_from_theory"]) > 25
    assert result["no_interior_optimum"] == ["rloo_k1_in_loss", "online_dpo_hard_labels"]
    for prefix, value in stated.get("value_at_optimum", {}).items():
        assert result["value_at_optimum"][prefix] == pytest.approx(value, abs=CLOSE)
    if name == "token":
        assert result["sequence_optimum"] == pytest.approx(stated["sequence_optimum"], abs=CLOSE)


def test_the_command_prints_the_policies(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A world of a user's, with its states in another order."""
    world = {
        "alphabet": ["x", "E"],
        "states": ["(x)", "()"],
        "ref": [[0.5, 0.5], [0.25, 0.75]],
        "sequences": [[1], [0, 0], [0, 1]],
        "reward": [0.0, 1.0, -1.0],
        "beta": 1.0,
    }
    path = tmp_path / "worlds.json"
    path.write_text(json.dumps({"mine": world}))
    assert main(["world", str(path)]) == 0
    result = json.loads(capsys.readouterr().out)["mine"]
    behind = math.cosh(1)  # E_ref exp(r) behind x
    first = 0.25 * behind / (0.25 * behind + 0.75)
    last = math.e / 2 / behind
    optimum = [last, 1 - last, first, 1 - first]
    assert flat(result["converges_to"]["rloo_kl_in_reward"]) == pytest.approx(optimum, abs=CLOSE)


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/explanation/objective-of-rl.md: each method's KL to the optimum, in both worlds."""
    assert main(["world", "--table", str(WORLDS)]) == 0
    page = (ROOT / "docs/explanation/objective-of-rl.md").read_text()
    shown = page.partition("<!-- table -->\n")[2].partition("<!-- end -->")[0]
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not valid JSON"),
        ('{"a": 1}', "no world in it"),
        ('{"a": {"reward": [1], "pi_ref": [0.5, 0.5], "beta": 1}}', "a: malformed: 1 rewards of 2 responses"),
        ('{"a": {"reward": [1]}}', "a: malformed: 'alphabet'"),
    ],
)
def test_another_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "world.json"
    path.write_text(text)
    with pytest.raises(UserError) as mistake:
        read_worlds(path)
    assert sentence in str(mistake.value)
    assert str(mistake.value).startswith(str(path))


@pytest.mark.parametrize("aggregation", ["sequence_sum", "token_mean", "sequence_mean"])
@pytest.mark.parametrize("method", ["rloo", "dr_grpo", "grpo"])
def test_kl_in_the_reward_is_the_optimum_for_groups(token: World, method: str, aggregation: str) -> None:
    """Advantages of the shaped reward vanish at pi*, so the aggregation does not move it."""
    optimum = backward(token, tilted(0.6), soft(0.6))
    assert off(token, optimum, method=method, beta=0.6, aggregation=aggregation) < CLOSE


def test_a_mean_over_each_responses_tokens_moves_the_optimum_without_a_group(token: World) -> None:
    optimum = backward(token, tilted(0.6), soft(0.6))
    assert off(token, optimum, method="reinforce", beta=0.6, aggregation="token_mean") < CLOSE
    assert off(token, optimum, method="reinforce", beta=0.6, aggregation="sequence_mean") > 0.05
    assert policy_gradient_optimum("reinforce", aggregation="sequence_mean").warning


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_the_mean_of_the_group_strengthens_a_kl_in_the_loss(bandit: World, samples: int) -> None:
    """Dr. GRPO's baseline holds the response itself: beta G / (G - 1); RLOO's does not."""
    for method, beta in (("dr_grpo", 0.8 * samples / (samples - 1)), ("rloo", 0.8)):
        row: dict[str, Any] = {"method": method, "beta": 0.8, "where": "loss", "samples": samples}
        for estimator, choose in (("k2", tilted), ("ratio_k3", tilted), ("full", tilted), ("k3", forward_kl)):
            theory = backward(bandit, choose(beta), expected)
            assert off(bandit, theory, estimator=estimator, **row) < CLOSE
    assert "1.333 beta" in policy_gradient_optimum("dr_grpo", where="loss", estimator="k2", samples=4).sentence


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_ppo_with_an_exact_critic_reaches_the_optimum_for_every_lambda(token: World, lam: float) -> None:
    optimum = backward(token, tilted(0.6), soft(0.6))
    assert off(token, optimum, method="ppo", beta=0.6, lam=lam) < CLOSE
    wrong = off(token, optimum, method="ppo", beta=0.6, lam=lam, critic_error=0.7)
    assert wrong < CLOSE if lam == 1 else wrong > 1e-2


@pytest.mark.parametrize(
    "row",
    [
        {"where": "loss", "estimator": "k1"},
        {"estimator": "full"},
        {"estimator": "k2"},
        {"estimator": "k3"},
    ],
)
def test_settings_without_a_penalty_run_away_and_the_plan_says_so(bandit: World, row: dict[str, str]) -> None:
    """k1 in the loss, and every estimator but k1 in the reward: the minimum is not a number, and there is a warning."""
    setting = ExactPolicy(method="rloo", beta=0.8, **row)
    minimum = converge(bandit, setting)
    assert not math.isfinite(minimum.gradient)
    assert setting.optimum.warning
    assert not ExactPolicy(method="rloo", beta=0.8).optimum.warning


def test_grpos_deviation_leaves_no_family_of_optima(bandit: World) -> None:
    """Groups of 3, k3 or ratio times k3 in the loss: interior, and log(pi / ref) is no straight line in r."""
    for estimator in ("k3", "ratio_k3"):
        policy = reached(bandit, method="grpo", beta=0.8, where="loss", estimator=estimator)
        ratio = (policy.log() - bandit.reference.log_softmax(-1)).flatten()
        reward = bandit.reward[0]
        slope = ((ratio - ratio.mean()) * (reward - reward.mean())).sum() / ((reward - reward.mean()) ** 2).sum()
        bend = (ratio - ratio.mean() - slope * (reward - reward.mean())).abs().max()
        assert bend > 0.01
    assert policy_gradient_optimum("grpo", where="loss", estimator="k3", samples=8).warning


@pytest.mark.parametrize("method", [*FINITE, *UNBOUNDED, "dpo"])
def test_what_hard_and_sampled_labels_do_to_a_pair_loss(bandit: World, method: str) -> None:
    """Which losses have a minimum on their own samples, as `config.optimum` says; a kink counts as one."""
    beta = {"eta": 1.0} if method == "rebel" else {} if method in ("cpo", "orpo") else {"beta": 0.8}
    summed = {"logprob": "summed"} if method == "ipo" else {}
    loss = objective({"method": method, **beta, **summed}, "test", "row")
    sampled, hard = online(bandit, loss, "bradley_terry"), online(bandit, loss, "hard")
    assert math.isfinite(hard.gradient) == (method in FINITE)
    assert math.isfinite(sampled.gradient) == (method not in UNBOUNDED)
    assert bool(preference_optimum(method, labels="hard").warning) == (method not in FINITE)
    assert bool(preference_optimum(method, labels="bradley_terry").warning) == (method in UNBOUNDED)


def test_rounds_divide_beta(token: World) -> None:
    """DPO on sampled labels against the last round's policy: pi*(beta / T); against SFT: pi*."""
    loss = objective({"method": "dpo", "beta": 0.9}, "test", "row")
    for rounds in (1, 2, 3):
        moved = iterated(token, loss, "bradley_terry", rounds, moving=True).log_policy.exp()
        torch.testing.assert_close(moved, token.optimum(0.9 / rounds).exp(), rtol=0, atol=CLOSE)
    fixed = iterated(token, loss, "bradley_terry", 3, moving=False).log_policy.exp()
    torch.testing.assert_close(fixed, token.optimum(0.9).exp(), rtol=0, atol=CLOSE)
    assert preference_optimum("dpo", labels="soft", rounds=3, reference="round").sentence.startswith("pi*(beta / 3)")


def test_distilling_the_best_of_n_again_is_the_best_of_its_power(token: World) -> None:
    torch.testing.assert_close(
        distilled_best_of_n(token, 2, rounds=3).exp(), distilled_best_of_n(token, 8).exp(), rtol=0, atol=1e-12
    )


def sampled_round(
    world: World, logits: Tensor, method: str, draw: torch.Generator, size: int, values: Tensor | None = None
) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    """Sample `size` responses; return the policy's loss of logits, and rows, returns and mask of their tokens."""
    padded = Padded(world)
    chance = world.log_policy(logits)[0].exp()
    picks = torch.multinomial(chance, size, replacement=True, generator=draw)
    old, reference = (padded.logprobs(one)[0, picks] for one in (logits, world.reference))
    mask, scores, kl = padded.mask[picks], world.reward[0, picks], pg.kl_k1(old, reference)
    row, returns = padded.row[picks], torch.zeros_like(old)
    if method in ("rloo", "dr_grpo", "grpo"):
        shaped = (scores - BETA * (kl * mask).sum(1)).view(-1, 4)
        of = {"rloo": adv.leave_one_out, "dr_grpo": adv.group_mean, "grpo": adv.group_normalised}[method]
        advantage = of(shaped).flatten()[:, None].expand_as(old)
    else:
        rewards = adv.token_rewards(scores, kl, mask, coefficient=BETA)
        if method == "ppo":
            assert values is not None
            advantage, returns = adv.gae(rewards, values[row] * mask, mask, gamma=1.0, lam=0.95)
        else:
            advantage = adv.rewards_to_go(rewards, mask)
            if values is not None:
                advantage = adv.subtract_baseline(advantage, values[row], mask)

    def loss(now: Tensor) -> Tensor:
        tokens = pg.ppo_policy(padded.logprobs(now)[0, picks], old, advantage, clip_low=0.2)
        return pg.aggregate(tokens, mask, "sequence_sum")

    return loss, row, returns, mask


BETA = 0.6


@pytest.mark.parametrize("method", ["reinforce", "rloo", "dr_grpo", "grpo", "ppo"])
def test_no_sample_moves_the_optimum(token: World, method: str) -> None:
    """A whole round at pi* with V = beta log Z(prefix), 4 epochs with a rate of 1: at most 1e-12, and not so at pi_ref.

    REINFORCE takes V as its baseline: the score of a single sample is not 0 without one.
    """
    optimum, draw = backward(token, tilted(BETA), soft(BETA)), torch.Generator().manual_seed(0)
    padded = Padded(token)
    ratio = (optimum - token.reference.log_softmax(-1)).flatten(1)[:, padded.cell] * padded.mask
    rewards = -BETA * ratio[0]
    rewards[torch.arange(len(rewards)), padded.mask.sum(1).long() - 1] += token.reward[0]
    returns = adv.rewards_to_go(rewards, padded.mask)
    values = padded.critic(token.log_policy(optimum).exp(), returns[None])[0]
    for start, still in ((optimum, True), (token.reference, False)):
        logits = start.clone()
        loss, *_ = sampled_round(token, logits, method, draw, 256, values)
        for _ in range(4):
            varied = logits.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(varied), varied)
            logits = logits - gradient
        moved = (logits - start).abs().max().item()
        # GRPO divides rounding by its deviation, which is 0 here, plus eps.
        assert moved < 1e-12 if still else moved > 1e-2


@pytest.mark.parametrize("method", ["rloo", "dr_grpo", "grpo", "ppo"])
def test_sampled_updates_come_within_a_thousandth_of_a_nat(token: World, method: str) -> None:
    """256 responses an update, 300 updates, Adam with a rate falling from 0.1 to 0; PPO learns its critic."""
    draw = torch.Generator().manual_seed(1)
    logits = token.reference.clone().requires_grad_()
    values = torch.zeros(token.reference.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, values], lr=0.1)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        held = values.detach()
        policy_loss, row, returns, mask = sampled_round(token, logits.detach(), method, draw, 256, held)
        total = policy_loss(logits)
        if method == "ppo":
            errors = pg.ppo_value(values[row], held[row], returns, clip=None)
            total = total + pg.aggregate(errors, mask, "token_mean")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    policy = token.log_policy(logits.detach())
    assert (policy.exp() * (policy - token.optimum(BETA))).sum() < 1e-3
    assert token.kl(policy) > 0.05


def test_an_option_that_is_not_read_is_a_mistake() -> None:
    with pytest.raises(UserError, match="runs.it.samples: reinforce does not read it; leave it out"):
        exact_policy({"method": "reinforce", "samples": 4}, "x.yaml", "runs.it")
    with pytest.raises(UserError, match=r"runs.it.clip: ppo does not read clip; its options are beta"):
        exact_policy({"method": "ppo", "clip": 3}, "x.yaml", "runs.it")


def test_a_broken_advantage_misses_the_optimum(token: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken twin: advantages that are absolute scores, without a sign."""
    optimum = backward(token, tilted(0.6), soft(0.6))
    monkeypatch.setattr(adv, "leave_one_out", lambda scores: scores.abs())
    assert off(token, optimum, method="rloo", beta=0.6) > 1e-2


def test_worlds_with_several_prompts_are_solved_prompt_by_prompt(token: World) -> None:
    twice = replace(token, reward=torch.cat([token.reward, -token.reward]), reference=torch.cat([token.reference] * 2))
    optimum = backward(twice, tilted(0.6), soft(0.6))
    assert off(twice, optimum, method="dr_grpo", beta=0.6) < CLOSE
    torch.testing.assert_close(twice.log_policy(optimum), twice.optimum(0.6))
