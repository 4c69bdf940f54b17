"""Calibration, accuracy by length and rank correlation, by arithmetic that can be redone."""

import math

import numpy as np
import pandas as pd
import pytest

from prefdag.evaluation.calibration import (
    accuracy_by_length,
    calibration,
    length_bins,
    pairs_of,
    ranked_correctly,
    resample_prompts,
    spearman,
)
from prefdag.reporting.figures.reliability import reward_length_figure
from prefdag.seeds import generator


def pairs(gaps: list[float], tokens: list[int] | None = None, prompts: list[int] | None = None) -> pd.DataFrame:
    num = len(gaps)
    return pd.DataFrame({"gap": gaps, "tokens": tokens or [1] * num, "prompt": prompts or list(range(num))})


def test_pairs_of_a_ranking_of_three():
    """Rewards 5, 3, 4 of responses with 10, 12, 7 tokens: 5-3, 5-4, 3-4; 10-12, 10-7, 12-7."""
    table = pd.DataFrame({"row": [0], "prompt": [6]})
    for place, (reward, tokens) in enumerate(((5.0, 10), (3.0, 12), (4.0, 7))):
        table[[f"after_rank{place + 1}", f"tokens_rank{place + 1}"]] = reward, tokens
    result = pairs_of(table, "after")
    assert result["gap"].tolist() == [2, 1, -1] and result["tokens"].tolist() == [-2, 3, 5]
    assert result["prompt"].tolist() == [6, 6, 6]


def test_calibration_by_hand():
    """sigmoid(ln 3) = 0.75: of four such, one is wrong and three are right, so 0.75 is observed and the error is 0.

    Two with sigmoid(ln 9) = 0.9, one right: 0.5 is observed. The error is 2/6 of 0.4.
    """
    fine, sure = math.log(3), math.log(9)
    result = calibration(pairs([fine, fine, -fine, fine, sure, -sure]), seed="test", bootstrap=100)
    assert result.bins["confidence"].to_numpy() == pytest.approx([0.75, 0.9])
    assert result.bins["observed"].tolist() == [0.75, 0.5] and result.bins["pairs"].tolist() == [4, 2]
    assert result.error == pytest.approx(2 / 6 * 0.4)
    assert result.low <= result.error <= result.high


def test_which_response_stands_first_does_not_matter():
    """The error of every pair in both orders, in twenty bins over [0, 1], is that of the preferred order in ten."""
    gaps = generator(0, "gaps").normal(0.4, 1.5, 300)
    predicted = 1 / (1 + np.exp(-np.concatenate([gaps, -gaps])))
    outcome = np.concatenate([np.ones(300), np.zeros(300)])
    place = np.minimum((predicted * 20).astype(int), 19)
    error = sum(abs((outcome - predicted)[place == one].sum()) for one in range(20)) / 600
    assert calibration(pairs(gaps.tolist()), seed="test", bootstrap=10).error == pytest.approx(error)


def test_a_calibrated_reward_errs_as_by_chance_and_a_sure_one_more():
    """Outcomes sampled with sigmoid(gap); the same outcomes with gaps five times as large are over-confident."""
    rng = generator(0, "calibrated test")
    sizes = rng.exponential(1.0, 4000)
    signs = np.where(rng.random(4000) < 1 / (1 + np.exp(-sizes)), 1, -1)
    honest, sure = (calibration(pairs((scale * sizes * signs).tolist()), seed="test", bootstrap=50) for scale in (1, 5))
    assert honest.error < 1.5 * honest.by_chance < 0.05 < sure.low


def test_ties_and_one_prompt():
    """No difference predicts a half and is half right; an interval over a prompt or two is none."""
    assert ranked_correctly([2.0, 0.0, -1.0]).tolist() == [1, 0.5, 0]
    result = calibration(pairs([0.0] * 4, prompts=[3, 3, 5, 5]), seed="test", bootstrap=10)
    assert result.error == 0 and result.bins["observed"].tolist() == [0.5]
    assert result.bins["low"].isna().all()


def test_length_bins_are_symmetric_thirds():
    """Sizes 3, 6, 9, which are a third each, and 0: whole numbers above the lower edge, up to the upper one."""
    assert length_bins([3, -6, 9, 0]) == [(-10, -7), (-7, -4), (-4, -1), (-1, 0), (0, 3), (3, 6), (6, 9)]
    assert length_bins([4, 0]) == [(-5, -1), (-1, 0), (0, 4)]


def test_accuracy_by_length_of_a_reward_that_counts_tokens():
    """Right where the better response is longer, wrong where it is shorter, a half where both are equal."""
    tokens = [-9, -5, -2, 0, 0, 2, 5, 9]
    result = accuracy_by_length(pairs([float(gap) for gap in tokens], tokens), seed="test", bootstrap=20)
    assert dict(zip(result["label"], result["accuracy"])) == {
        "−9 to −6": 0, "−5 to −3": 0, "−2 to −1": 0, "0": 0.5, "+1 to +2": 1, "+3 to +5": 1, "+6 to +9": 1,
    }  # fmt: skip
    assert result["pairs"].tolist() == [1, 1, 1, 2, 1, 1, 1]
    assert not len(accuracy_by_length(pairs([1.0, -1.0], [0, 0]), seed="test"))


def test_spearman_by_hand():
    """Ranks 1, 2, 3, 4 and 2, 1, 4, 3: 1 - 6 * 4 / (4 * 15) = 0.6; a monotone map changes nothing; ties share ranks."""
    prompts = [0, 1, 2, 3]
    assert spearman([1, 2, 3, 4], [2, 1, 4, 3], prompts, seed="test", bootstrap=20)[0] == pytest.approx(0.6)
    assert spearman([1, 8, 27, 64], [20, 10, 40, 30], prompts, seed="test", bootstrap=20)[0] == pytest.approx(0.6)
    left, other = generator(0, "spearman test").integers(0, 5, (2, 50))
    expected = pd.Series(left).corr(pd.Series(other), method="spearman")
    rho, low, high = spearman(left, other, np.arange(50), seed="test", bootstrap=400)
    assert rho == pytest.approx(expected) and low < rho < high
    assert all(map(math.isnan, spearman([1, 1], [1, 2], [0, 1], seed="test", bootstrap=5)))


def test_spearmans_interval_draws_prompts_and_not_rows():
    """Five rows a prompt that say the same: the interval is that of one row a prompt."""
    left, other = generator(0, "clusters").normal(size=(2, 20))
    once = spearman(left, other, np.arange(20), seed="test", bootstrap=50)
    again = spearman(np.repeat(left, 5), np.repeat(other, 5), np.repeat(np.arange(20), 5), seed="test", bootstrap=50)
    assert again == pytest.approx(once, abs=0.02)
    assert resample_prompts(7, seed="test", bootstrap=9).sum(1).tolist() == [7.0] * 9


def test_responses_of_one_length_have_no_correlation_and_the_panel_says_so():
    varied = pd.DataFrame({"prompt_id": range(20), "length": range(20), "trained": np.linspace(0, 1, 20)})
    panels = reward_length_figure({"sft": varied, "dpo": varied.assign(length=96)}, {"trained": "reward"}).axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["sft\nρ = 1.00 [1.00, 1.00]", "dpo\nall alike, no correlation"]
