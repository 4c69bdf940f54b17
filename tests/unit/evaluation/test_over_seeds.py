"""Intervals over the seeds of trainings and the prompts: by hand, and by how often they hold the truth."""

import numpy as np
import pytest

from prefdag.evaluation.bootstrap import summarise
from prefdag.evaluation.over_seeds import Variance, half_width, mean_over_seeds, paired_difference, seed_variance
from prefdag.seeds import generator

PROMPTS = 100
TRIALS = 1500  # a coverage of 95 % is known to 0.6 points
T2 = 4.302653  # 97.5 % quantile of t with 2 degrees of freedom


def test_what_is_hard_for_both_cancels():
    """Prompts from -10 to 10 move both sides equally: ours is 0.5 above at each, and so in every resample."""
    hard = np.linspace(-10, 10, 20)
    result = paired_difference([hard + 0.5], [hard], seed="paired")
    assert (result.mean, result.n) == (pytest.approx(0.5), 20)
    assert result.high - result.low == pytest.approx(0, abs=1e-12) and result.se == pytest.approx(0, abs=1e-12)
    assert summarise(hard + 0.5, range(20), seed="alone").se > 1


def test_one_seed_a_side_is_the_bootstrap_over_prompts():
    values = generator(0, "values").normal(size=30)
    assert paired_difference([values], [np.zeros(30)], seed="s") == summarise(values, range(30), seed="s")


def test_seeds_that_disagree_are_a_t_interval_over_seeds():
    """Seeds at 0, 3 and 6 at every prompt: s^2 / 3 = 3, so 3 -+ t_2 sqrt(3); over prompts alone there is no spread."""
    ours = np.repeat([[0.0], [3.0], [6.0]], 40, axis=1)
    result = paired_difference(ours, np.zeros((1, 40)), seed="seeds")
    assert (result.mean, result.se, result.n) == (3, pytest.approx(np.sqrt(3)), 40)
    assert result.high - 3 == 3 - result.low == pytest.approx(T2 * np.sqrt(3), rel=1e-5)
    assert summarise(ours.mean(axis=0), range(40), seed="pooled").se == 0


def test_seeds_of_both_sides_count():
    """Sides of seeds 0 and 4: variance 8 / 2 each, together 8 with 2 degrees of freedom."""
    side = np.repeat([[0.0], [4.0]], 10, axis=1)
    result = paired_difference(side, side, seed="both")
    assert (result.mean, result.se) == (0, pytest.approx(np.sqrt(8)))
    assert result.high == pytest.approx(T2 * np.sqrt(8), rel=1e-5)


def test_prompts_count_where_seeds_agree():
    """Equal seeds are one: the variance of 1, ..., 5 is 2.5, over 5 prompts 0.5, and the t quantile of 4 is 2.776."""
    result = mean_over_seeds(np.tile(np.arange(1.0, 6.0), (3, 1, 1)), seed="equal")
    assert (result.mean, result.se) == (3, pytest.approx(np.sqrt(0.5)))
    assert result.high - 3 == pytest.approx(2.776445 * np.sqrt(0.5), rel=1e-5)


def test_what_seeds_and_prompts_make_together_counts_once():
    """Seeds (1, -1) and (-1, 1) at two prompts: no mean differs, so neither part has a variance."""
    result = mean_over_seeds(np.array([[[1.0, -1.0]], [[-1.0, 1.0]]]), seed="crossed")
    assert (result.mean, result.low, result.high, result.se) == (0, 0, 0, 0)


def test_the_interval_stays_within_what_a_mean_can_be():
    values = np.repeat([[[0.7]], [[0.8]], [[1.0]]], 10, axis=2)
    assert mean_over_seeds(values, seed="wide").high > 1
    assert mean_over_seeds(values, seed="wide", within=(0.0, 1.0)).high == 1


def trainings(random: np.random.Generator, sides: tuple[int, int], spread: float, noise: float) -> list[np.ndarray]:
    """Scores [seeds, PROMPTS] of two methods whose true difference is 0.

    A prompt is hard for all (1), and harder for one method than for the other (0.4); a seed moves all of its answers
    (`spread`), and each answer has noise of its own.
    """
    hard = random.normal(size=PROMPTS)
    return [
        hard
        + 0.4 * random.normal(size=PROMPTS)
        + spread * random.normal(size=(number, 1))
        + noise * random.normal(size=(number, PROMPTS))
        for number in sides
    ]


def coverage(
    sides: tuple[int, int], spread: float, noise: float, name: str, trials: int = TRIALS
) -> tuple[float, float]:
    """How often the intervals of the first side's mean and of the difference hold 0, the truth of both."""
    random = generator(0, "coverage", name)
    hits = np.zeros(2)
    for _ in range(trials):
        ours, theirs = trainings(random, sides, spread, noise)
        mean = mean_over_seeds(ours[:, None], seed="prompts", bootstrap=200)
        gap = paired_difference(ours, theirs, seed="prompts", bootstrap=200)
        hits += [mean.low <= 0 <= mean.high, gap.low <= 0 <= gap.high]
    return tuple(hits / trials)


@pytest.mark.parametrize("noise", [0.3, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
def test_three_seeds_cover_as_often_as_they_say(spread: float, noise: float):
    """Seeds that agree, that vary as much as a mean over prompts, and three times as much: 93 to 97 % each."""
    for rate in coverage((3, 3), spread, noise, f"{spread}/{noise}"):
        assert 0.93 <= rate <= 0.97


def test_one_seed_covers_too_little_whatever_is_done():
    """The interval of one seed holds the truth far less often than 95 %, which is why it is never called a win."""
    alone, gap = coverage((1, 1), 0.3, 0.3, "one seed", trials=300)
    assert alone < 0.6 and gap < 0.6


def test_each_interval_alone_would_cover_too_little():
    """Seeds alone miss the prompts where seeds agree; Satterthwaite's alone, the seeds where they differ much."""
    random = generator(0, "coverage", "each")
    seeds_only = both = 0
    for _ in range(TRIALS):
        ours, _ = trainings(random, (3, 3), 0.0, 0.3)
        seeds = seed_variance(ours.mean(axis=1))
        seeds_only += abs(ours.mean()) <= half_width([seeds], Variance(0.0, PROMPTS - 1))
        both += abs(ours.mean()) <= half_width([seeds], Variance(ours.mean(axis=0).var() / PROMPTS, PROMPTS - 1))
    assert seeds_only / TRIALS < 0.6 < 0.9 < both / TRIALS


def test_an_interval_is_no_shorter_than_that_over_seeds_alone():
    """With a small part of the prompts, Satterthwaite's degrees of freedom rise faster than the variance."""
    alone = half_width([Variance(1.0, 2)], Variance(0.0, 99))
    assert half_width([Variance(1.0, 2)], Variance(0.01, 99)) == alone == pytest.approx(4.3027, abs=1e-4)
