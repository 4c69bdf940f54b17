"""The estimated frontier of a pool, against the exact one of worlds that can be enumerated."""

from functools import cache

import numpy as np
import pytest

from prefdag.config.exact import Exact
from prefdag.evaluation.attainable import (
    LEAST_SAMPLES,
    Frontier,
    frontier,
    interval,
    prompt_weights,
    share_of_attainable,
)
from prefdag.theory.world import World

KLS = (0.1, 0.5, 1.0)


@cache
def world() -> World:
    return World.of(Exact(prompts=8, words=3, length=3, seed=1))


def sampled(n: int, repeats: int, prompts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Rewards of n samples of the reference at each of `prompts` of the world, [repeats, G, n]."""
    rng = np.random.default_rng(seed)
    reward, chance = world().reward.numpy(), world().log_reference.exp().numpy()
    pools = np.empty((repeats, len(prompts), n))
    for row, prompt in enumerate(prompts):
        responses = rng.choice(len(chance[prompt]), size=(repeats, n), p=chance[prompt] / chance[prompt].sum())
        pools[:, row] = reward[prompt, responses]
    return pools


def exact_gain(kl: float) -> float:
    return world().best_at(kl) - world().value(world().log_reference)


@cache
def frontiers(n: int, repeats: int) -> list[Frontier]:
    return [frontier(pool) for pool in sampled(n, repeats, np.arange(8))]


def estimates(n: int, repeats: int, kl: float) -> np.ndarray:
    # The baseline of a gain is the pool's mean, which is unbiased, so the gain has the frontier's bias.
    even = np.full((1, 8), 1 / 8)
    return np.array([one.gain_at(np.array([kl]), even)[0] for one in frontiers(n, repeats)])


@pytest.mark.parametrize("kl", KLS)
def test_a_large_pool_gives_the_exact_frontier(kl: float) -> None:
    assert estimates(20_000, 1, kl)[0] == pytest.approx(exact_gain(kl), abs=0.02)


def test_a_pool_in_the_proportions_of_the_reference_is_exact() -> None:
    """Each response as often as the reference gives it: the pool's own distribution is the reference."""
    counts = [[3, 1, 4], [2, 2, 4]]
    rewards = np.array([[0.3, -1.0, 2.0], [0.0, 1.0, -0.5]])
    pool = frontier(np.array([np.repeat(row, count) for row, count in zip(rewards, counts, strict=True)]))
    chance = np.array(counts) / 8
    for index in (40, 120, 160):
        tilted = chance * np.exp(rewards / pool.betas[index])
        tilted /= tilted.sum(1, keepdims=True)
        assert pool.reward[:, index] == pytest.approx((tilted * rewards).sum(1))
        assert pool.kl[:, index] == pytest.approx((tilted * np.log(tilted / chance)).sum(1))


@pytest.mark.parametrize("kl", KLS)
def test_the_estimate_is_low_and_rises_with_the_pool(kl: float) -> None:
    """Jensen's inequality, beyond three standard errors of the simulation."""
    means = []
    for n in (8, 32, 128):
        values = estimates(n, 150, kl)
        means.append((values.mean(), 3 * values.std() / np.sqrt(len(values))))
    assert means[0][0] + means[0][1] < means[1][0] - means[1][1]
    assert means[1][0] < means[2][0]
    assert means[0][0] + means[0][1] < exact_gain(kl)
    assert means[2][0] - means[2][1] < exact_gain(kl)


def test_the_stated_bias_is_the_one_that_is_seen() -> None:
    """To first order: within a third of the mean gap to the exact frontier, at half a nat from 32 samples."""
    gap = estimates(32, 150, 0.5).mean() - exact_gain(0.5)
    stated = np.mean([np.interp(0.5, one.kl.mean(0), one.bias) for one in frontiers(32, 150)])
    assert gap < 0 and stated == pytest.approx(gap, rel=1 / 3)


def test_the_interval_covers_the_frontier_of_the_population_of_prompts() -> None:
    """40 prompts out of a population of 8 kinds, 64 samples each: 95% intervals at half a nat hold the truth."""
    rng = np.random.default_rng(3)
    covered, rounds = 0, 120
    truth = exact_gain(0.5)
    for index in range(rounds):
        pool = frontier(sampled(64, 1, rng.integers(0, 8, 40), seed=index)[0])
        weights = prompt_weights(40, 200, f"coverage/{index}")
        _, low, high = interval(pool.gain_at(np.full(201, 0.5), weights))
        covered += low <= truth <= high
    assert 0.90 <= covered / rounds <= 0.99


def test_a_policy_on_the_frontier_reaches_all_of_it_and_half_its_gain_is_a_half() -> None:
    pool = frontier(sampled(256, 1, np.arange(8))[0])
    index = 100
    gain = pool.reward[:, index] - pool.reward[:, 0]
    weights = prompt_weights(8, 50, "share")
    attainable, share = share_of_attainable(pool, gain, pool.kl[:, index], weights)
    assert share == pytest.approx(1, abs=1e-9) and attainable[0] == pytest.approx(gain.mean())
    assert share_of_attainable(pool, gain / 2, pool.kl[:, index], weights)[1] == pytest.approx(0.5, abs=1e-9)


def test_the_trusted_kl_is_bounded_by_the_pool() -> None:
    pools = np.random.default_rng(0).normal(size=(20, 64))
    pool = frontier(pools)
    assert 0 < pool.trusted_kl < np.log(64 / LEAST_SAMPLES) + 1
    assert pool.kl.max() == pytest.approx(np.log(64), abs=1e-3)
    last = int((pool.effective_samples >= LEAST_SAMPLES).sum())
    assert pool.effective_samples[last - 1] >= LEAST_SAMPLES > pool.effective_samples[last]
    assert frontier(pools[:, :8]).trusted_kl == 0
    level = frontier(np.zeros((3, 16)))
    assert level.trusted_kl == 0 and np.isnan(
        share_of_attainable(level, np.ones(3), np.ones(3), np.ones((1, 3)) / 3)[1, 0]
    )
