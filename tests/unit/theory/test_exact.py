"""Theory made executable: in a world that can be enumerated, population losses are minimised where papers say."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from conftest import ROOT, checkout
from prefdag.config import jobs, resources
from prefdag.config.exact import LEFT_OUT, Exact
from prefdag.config.objectives import OBJECTIVES, objective
from prefdag.config.optimum import POLICY_GRADIENT
from prefdag.config.suite import ExactSuite, read_suite, resolve
from prefdag.errors import UserError
from prefdag.losses.registry import loss_of
from prefdag.stages.exact import Job as SweepJob
from prefdag.theory.solve import Minimum, Population, Tokens, minimise, pairs, population_loss, rankings, singles
from prefdag.theory.world import World, divergence, enumerated

SMALL = Exact(length=2)  # 3 prompts, 7 responses each


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(SMALL)


def trained(world: World, population: Population | None = None, **row: Any) -> Minimum:
    return minimise(world, objective(row, "test", "row"), population or pairs(world))


def additive(world: World, targets: Tensor) -> Tensor:
    """The log-ratios h(y) whose differences are closest to targets [X, Y, Y], pairs drawn from the reference: [X, Y].

    Weighted least squares by numpy, then shifted so that pi_ref exp(h) sums to 1.
    """
    chance, num = world.log_reference.exp().numpy(), len(world.responses)
    left, right = (index.ravel() for index in np.indices((num, num)))
    minimum = []
    for x in range(len(chance)):
        root = np.sqrt(chance[x][left] * chance[x][right])[:, None]
        design = root * (np.eye(num)[left] - np.eye(num)[right])
        minimum.append(np.linalg.lstsq(design, root[:, 0] * targets[x].numpy().ravel(), rcond=None)[0])
    ratio = torch.from_numpy(np.array(minimum))
    return ratio - (world.log_reference + ratio).logsumexp(1, keepdim=True)


def test_every_response_is_there_once():
    """One word, at most two tokens: end; word end; word word."""
    assert enumerated(1, 2) == [(1,), (0, 1), (0, 0)]
    assert len(World.of(Exact()).responses) == 1 + 2 + 4 + 8
    assert len(set(World.of(Exact()).responses)) == 15


def test_a_policy_is_a_distribution_and_its_tokens_are_the_products_factors(world: World):
    """By hand: response (0, end) of prompt 1 is p(0 | empty) p(end | 0), rows 0 and 1 of its table."""
    torch.testing.assert_close(world.log_reference.exp().sum(1), torch.ones(3, dtype=torch.float64))
    at = world.responses.index((0, 2))
    rows = world.reference[1].log_softmax(-1)
    tokens = Tokens(world, torch.tensor([[1 * 7 + at, 0]])).logprobs(world.reference)
    torch.testing.assert_close(tokens.tokens[:2], torch.stack([rows[0, 0], rows[1, 2]]))
    assert tokens.count.tolist() == [[2, 1]]
    torch.testing.assert_close(tokens.total[0, 0], world.log_reference[1, at])


def test_populations_are_distributions(world: World):
    for population in (pairs(world), pairs(world, 0.2), singles(world), rankings(world, 3)):
        assert population.weights.sum().item() == pytest.approx(1, abs=1e-12)
        assert (population.weights > 0).all()
    torch.testing.assert_close(rankings(world, 2).weights, pairs(world).weights)


def test_the_frontier_is_the_best_there_is(world: World):
    """No policy has more reward at its KL; what one lacks is beta times its KL to the optimum of that KL."""
    draw = torch.Generator().manual_seed(1)
    for scale in (0.1, 1.0, 3.0):
        noise = torch.randn(world.reference.shape, generator=draw, dtype=torch.float64)
        policy = world.log_policy(world.reference + scale * noise)
        beta = world.beta_at(world.kl(policy))
        gap = world.best_at(world.kl(policy)) - world.value(policy)
        assert gap > 0
        assert gap == pytest.approx(beta * divergence(policy, world.optimum(beta)), rel=1e-6)
    assert world.best_at(0) == pytest.approx(world.value(world.log_reference), abs=1e-6)
    assert world.best_at(1e3) == pytest.approx(world.reward.max(1).values.mean().item(), abs=1e-9)


@pytest.mark.parametrize("beta", [0.1, 0.3, 1.0, 3.0])
def test_dpo_reaches_the_optimum(world: World, beta: float):
    """Rafailov et al. 2023, section 4: pi* = pi_ref exp(r / beta) / Z, and beta log(pi / pi_ref) is r plus f(x)."""
    policy = trained(world, method="dpo", beta=beta).log_policy
    optimum = world.optimum(beta)
    assert divergence(policy, optimum) < 1e-8
    off = beta * (policy - world.log_reference) - world.reward
    assert (off.max(1).values - off.min(1).values).max() < 1e-3
    assert off.std(0).max() > 0.01, "f(x) is not one constant"
    assert world.kl(policy) == pytest.approx(world.kl(optimum), abs=1e-6)
    assert world.best_at(world.kl(policy)) - world.value(policy) < 1e-8


def test_dpo_with_another_beta_misses_the_optimum(world: World):
    policy = trained(world, method="dpo", beta=1.0).log_policy
    assert divergence(policy, world.optimum(0.5)) > 0.01


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_ipo_reaches_its_own_fixed_point(world: World, beta: float):
    """Of both orders of a pair p (D - c)^2 + (1 - p) (D + c)^2 = (D - (2 p - 1) c)^2 + const with c = 1 / (2 beta):

    D regressed on (2 p - 1) / (2 beta), which for independent draws from mu is h(y) = mean over mu(y') of that.
    """
    targets = (2 * world.preferred - 1) / (2 * beta)
    policy = trained(world, method="ipo", beta=beta, logprob="summed").log_policy
    ratio = policy - world.log_reference
    torch.testing.assert_close(ratio, additive(world, targets), rtol=0, atol=1e-6)
    mean = (targets * world.log_reference.exp()[:, None, :]).sum(2)
    torch.testing.assert_close(ratio - ratio[:, :1], mean - mean[:, :1], rtol=0, atol=1e-6)
    assert divergence(policy, world.optimum(beta)) > 1e-3, "which is not DPO's"


def test_rebel_is_exact_on_scores(world: World):
    """(D - eta (r - r'))^2 is 0 at pi_ref exp(eta r) / Z."""
    minimum = trained(world, method="rebel", eta=2.0)
    assert minimum.loss < 1e-15
    torch.testing.assert_close(minimum.log_policy, world.optimum(0.5), rtol=0, atol=1e-6)


def test_preferred_ft_is_the_distribution_of_the_preferred(world: World):
    """Maximum likelihood: pi(y) = 2 mu(y) sum_y' mu(y') p(y > y')."""
    chance = world.log_reference.exp()
    expected = 2 * chance * (world.preferred * chance[:, None, :]).sum(2)
    torch.testing.assert_close(trained(world, method="preferred_ft").log_policy.exp(), expected, rtol=0, atol=1e-7)


def test_robust_undoes_the_flips_that_cdpo_keeps(world: World):
    """Chowdhury et al. 2024: with a tenth of the labels turned round, robust at 0.1 is DPO without; DPO is not."""
    noisy, row = pairs(world, flips=0.1), {"beta": 1.0}
    robust = trained(world, noisy, method="robust", label_smoothing=0.1, **row)
    assert divergence(robust.log_policy, world.optimum(1.0)) < 1e-8
    assert divergence(trained(world, noisy, method="dpo", **row).log_policy, world.optimum(1.0)) > 1e-3
    smoothed = trained(world, method="cdpo", label_smoothing=0.1, **row)
    flipped = trained(world, noisy, method="dpo", **row)
    torch.testing.assert_close(smoothed.log_policy, flipped.log_policy, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["plackett_luce", "multi_negative", "all_pairs"])
def test_rankings_reach_the_optimum(world: World, method: str):
    """Rafailov et al. 2023, appendix A.3: K = 3 responses ranked by a Plackett-Luce model of the reward."""
    policy = trained(world, rankings(world, 3), method=method, beta=1.0).log_policy
    assert divergence(policy, world.optimum(1.0)) < 1e-8


def test_a_detached_weight_does_not_move_wpos_optimum(world: World):
    """WPO's weight scales pairs alike in both orders, so DPO's optimum is its fixed point."""
    policy = trained(world, method="wpo", beta=1.0).log_policy
    assert divergence(policy, world.optimum(1.0)) < 1e-8


def test_kto_above_its_reference_point_is_apo_zero(world: World):
    """While the mismatched mean is below 0, z is 0 and KTO's loss is APO-zero's, value for value."""
    rows: list[dict[str, Any]] = [{"method": "kto", "beta": 1.0}, {"method": "apo_zero_unpaired", "beta": 1.0}]
    first, second = (trained(world, singles(world), **row) for row in rows)
    torch.testing.assert_close(first.log_policy.exp(), second.log_policy.exp(), rtol=0, atol=1e-6)


def test_tdpos_reward_holds_the_token_kl(world: World):
    """Zeng et al. 2024: beta (log pi / pi_ref + K) is r + f(x), so its optimum is not that of the sequence KL."""
    beta = 0.3
    minimum = trained(world, method="tdpo1", beta=beta)
    held = minimum.logits.log_softmax(-1)
    reference = world.reference.log_softmax(-1)
    tokens = Tokens(world, torch.arange(world.reward.numel())[:, None])
    every = tokens.logprobs(minimum.logits)
    kl = every.summed(tokens.of_rows((reference.exp() * (reference - held)).sum(-1))).view(world.reward.shape)
    off = beta * (minimum.log_policy - world.log_reference + kl) - world.reward
    torch.testing.assert_close(off, off[:, :1].expand_as(off), rtol=0, atol=1e-5)
    assert divergence(minimum.log_policy, world.optimum(beta)) > 0.01


def test_what_is_held_does_not_change_the_gradient(world: World):
    """At the held policy itself the gradient is that of the loss as training calls it."""
    population = pairs(world)
    tokens = Tokens(world, population.members)
    noise = torch.randn(world.reference.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = (world.reference + noise).requires_grad_()
    reference, logp = world.reference.log_softmax(-1), logits.log_softmax(-1)
    collision = tokens.of_rows((2 * logp).logsumexp(-1)).detach()
    token_kl = tokens.of_rows((reference.exp() * (reference - logp)).sum(-1))
    for method, inputs in (("wpo", {"collision": collision}), ("tdpo2", {"divergence": token_kl})):
        loss = objective({"method": method, "beta": 1.0}, "test", "row")
        values = loss_of(loss)(tokens.logprobs(logits), reference=tokens.logprobs(world.reference), **inputs)
        (expected,) = torch.autograd.grad(population.weights @ values, logits, retain_graph=True)
        (minimum,) = torch.autograd.grad(population_loss(world, loss, population)(logits, logits.detach()), logits)
        torch.testing.assert_close(minimum, expected)
        assert expected.abs().max() > 1e-3


def test_rewards_that_differ_by_the_prompt_alone_are_one(world: World):
    """Rafailov et al. 2023, lemmas 1 and 2: r + f(x) gives the same preferences and the same optimal policy."""
    shift = torch.tensor([[3.0], [-1.0], [0.5]], dtype=torch.float64)
    moved = World(world.words, world.responses, world.reward + shift, world.reference)
    torch.testing.assert_close(moved.preferred, world.preferred)
    torch.testing.assert_close(rankings(moved, 3).weights, rankings(world, 3).weights)
    torch.testing.assert_close(moved.optimum(0.3), world.optimum(0.3))
    scaled = World(world.words, world.responses, world.reward * 2, world.reference)
    assert not torch.allclose(scaled.preferred, world.preferred)


def test_the_reparametrisation_gives_the_reward_back(world: World):
    """Rafailov et al. 2023, eq. 5: r = beta log(pi* / pi_ref) + beta log Z."""
    beta = 0.3
    log_partition = (world.log_reference + world.reward / beta).logsumexp(1, keepdim=True)
    again = beta * (world.optimum(beta) - world.log_reference) + beta * log_partition
    torch.testing.assert_close(again, world.reward)
    assert math.exp(log_partition[0]) == pytest.approx(
        (world.log_reference.exp() * (world.reward / beta).exp())[0].sum().item()
    )


SUITE: dict[str, Any] = {
    "name": "tiny",
    "threads": 2,
    "exact": {"prompts": 2, "words": 1, "length": 2},
    "grid": [{"method": "dpo", "beta": [0.5, 1, 2]}],
    "runs": [{"name": "ft", "method": "preferred_ft"}],
}


def test_an_entry_of_the_grid_is_one_job():
    suite = resolve(SUITE, "x.yaml")
    assert isinstance(suite, ExactSuite)
    assert [(run.name, len(run.objectives)) for run in suite.runs] == [("ft", 1), ("dpo", 3)]
    assert resources.threads_of(suite, "exact", "dpo") == 2
    read = json.loads(jobs.config_of(suite, "exact", "dpo"))
    assert [loss["beta"] for loss in read["run"]["objectives"]] == [0.5, 1, 2]
    assert SweepJob.parse(read, "exact --config").run == suite.run("dpo"), "the job reads the very losses again"


def test_a_job_of_every_shipped_row_reads_its_methods_again():
    suite = read_suite([str(ROOT / "configs/exact.yaml")])
    for run in suite.runs:
        read = json.loads(jobs.config_of(suite, "exact", run.name))
        assert SweepJob.parse(read, "exact --config").run == run


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"method": "aot"}, "runs.it: aot has no population loss to minimise: it couples the order statistics"),
        ({"method": "rpo", "nll": "per_token"}, "runs.it: rpo has no population loss to minimise: nll: per_token"),
        ({"method": "dpo", "beta": -1}, "runs.it.beta: expected a number above 0, got -1"),
        ({"method": "dpo", "seeds": [0]}, "runs.it.seeds: dpo does not read seeds; its options are beta"),
        ({"method": "dpo", "flips": 0.5}, "runs.it.flips: expected a number below 0.5, got 0.5"),
        (
            {"method": "plackett_luce", "flips": 0.1},
            "runs.it.flips: it applies to pairs, and plackett_luce reads rankings",
        ),
    ],
)
def test_a_mistake_is_one_sentence(row: dict[str, Any], sentence: str):
    with pytest.raises(UserError) as mistake:
        resolve({**SUITE, "runs": [{"name": "it", **row}]}, "x.yaml")
    assert str(mistake.value).startswith(f"x.yaml: {sentence}")


def test_sections_of_other_suites_have_no_place_beside_exact():
    with pytest.raises(UserError, match=r"^x.yaml: sft: unknown key"):
        resolve({**SUITE, "sft": {}}, "x.yaml")
    with pytest.raises(UserError, match=r"^x.yaml: exact.prompts: expected a number of at least 2, got 1$"):
        resolve({**SUITE, "exact": {"prompts": 1}}, "x.yaml")


def test_every_loss_has_a_row_or_a_reason():
    """The shipped suite holds every loss of the registry that has a population version."""
    suite = read_suite([str(ROOT / "configs/exact.yaml")])
    methods = {loss.method for run in suite.runs for loss in run.objectives}
    assert methods - set(POLICY_GRADIENT) | set(LEFT_OUT) == set(OBJECTIVES)
    assert methods >= set(POLICY_GRADIENT)
    assert not methods & set(LEFT_OUT)


def test_a_tiny_suite_runs_to_its_page_and_then_there_is_nothing_to_do(tmp_path: Path):
    """A user's loss that is DPO ends where DPO does."""
    project = checkout(tmp_path / "clone")
    source = "def mine(policy, reference, *, beta: float):\n    ratio = (policy - reference).total\n"
    source += "    return (1 + (beta * (ratio[:, 1] - ratio[:, 0])).exp()).log()\n"
    (project.folder / "configs/mine.py").write_text(source)
    rows = [*SUITE["grid"], {"name": "mine", "method": "mine.py:mine", "beta": [1, 2]}]
    (project.folder / "configs/tiny.yaml").write_text(json.dumps({**SUITE, "threads": 1, "grid": rows}))
    done = project.snakemake(suite="configs/tiny.yaml")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = project.folder / "results/tiny"
    points = pd.read_csv(results / "report/points.csv").set_index(["run", "setting"])
    assert len(points) == 6
    assert (points.loc[["dpo", "mine"], "gap"].abs() < 1e-9).all()
    assert points.loc[("mine", "beta=2.0"), "kl"] == pytest.approx(points.loc[("dpo", "beta=2.0"), "kl"])
    page = (results / "report/index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "beta_dpo" in page and not re.search(r"(src|href)=[\"']?https?:", page)
    again = project.snakemake("-n", "-p", suite="configs/tiny.yaml")
    assert "Nothing to be done" in again.stdout + again.stderr
    (project.folder / "configs/mine.py").write_text(source.replace("1 +", "1.0 +"))
    again = project.snakemake("-n", "-p", suite="configs/tiny.yaml")
    assert re.findall(r"wildcards: run=(\S+)", again.stdout + again.stderr) == ["mine"]
