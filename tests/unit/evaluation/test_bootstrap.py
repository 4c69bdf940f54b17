"""Statistics by arithmetic that a reader can redo."""

import numpy as np
import pytest

from prefdag.errors import UserError
from prefdag.evaluation import bootstrap
from prefdag.seeds import generator


def test_standard_error_of_single_rows_is_the_familiar_one():
    """1, 2, 3, 4: mean 2.5, sample variance 5/3, so s / sqrt(4) = sqrt(5/12) = 0.6455."""
    assert bootstrap.standard_error([1, 2, 3, 4], [0, 1, 2, 3]) == pytest.approx(np.sqrt(5 / 12))


def test_standard_error_counts_prompts_not_rows():
    """Prompt 0 holds 1, 1, prompt 1 holds 3, 3: residual sums -2 and 2, sqrt(2 * 8) / 4 = 1.

    Taken as four independent rows it would be sqrt(4/3) / 2 = 0.577: too sure of itself.
    """
    assert bootstrap.standard_error([1, 1, 3, 3], [0, 0, 1, 1]) == pytest.approx(1.0)


def test_standard_error_with_unequal_prompts():
    """Rows 0, 0, 3 in prompts a, a, b: mean 1, residual sums -2 and 2, sqrt(2 * 8) / 3 = 4/3."""
    assert bootstrap.standard_error([0, 0, 3], ["a", "a", "b"]) == pytest.approx(4 / 3)


def test_win_rate_counts_a_tie_half():
    """Two wins, one tie, one loss: (2 + 0.5) / 4 = 0.625."""
    rate = bootstrap.win_rate([1, 1, 0.5, 0], [0, 1, 2, 3], seed="ties")
    assert (rate.win_rate, rate.wins, rate.ties, rate.losses, rate.n) == (0.625, 2, 1, 1, 4)
    assert rate.low < 0.625 < rate.high


def test_only_ties_have_no_spread():
    rate = bootstrap.win_rate([0.5] * 6, range(6), seed="ties")
    assert (rate.win_rate, rate.low, rate.high) == (0.5, 0.5, 0.5)


def test_a_verdict_between_counts_as_what_it_is():
    """0.75 (won in one order, tied in the other) and 0.25: the mean is a half, one win, one loss."""
    rate = bootstrap.win_rate([0.75, 0.25], [0, 1], seed="between")
    assert (rate.win_rate, rate.wins, rate.ties, rate.losses) == (0.5, 1, 0, 1)
    assert rate.standard_error == pytest.approx(0.25)  # s = sqrt(2 * 0.25^2), over sqrt(2)
    with pytest.raises(AssertionError):
        bootstrap.win_rate([1.2, 1], [0, 1], seed="odd")


def test_interval_of_two_prompts_is_derived_by_hand():
    """Two samples of prompts 0 and 1: means 0, 1/2, 1 with chances 1/4, 1/2, 1/4: the 95% interval is [0, 1]."""
    assert bootstrap.bootstrap_interval([0, 1], [0, 1], seed="coin") == (0.0, 1.0)


def test_the_rows_of_a_prompt_come_together():
    """Rows 0, 0, 3 in prompts a, a, b: a resample holds aa, ab or bb, so its mean is 0, 1 or 3 and nothing between.

    A mean of prompt means would give 1.5 for ab; a resample of rows would give 2 as well.
    """
    low, high = bootstrap.bootstrap_interval([0, 0, 3], ["a", "a", "b"], seed="whole", level=0.4)
    assert (low, high) == (1.0, 1.0)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    """200 samples of 60 normal prompts: a 95% interval misses about 10 to 14 times; 26 is four deviations away."""
    rng = generator(0, "coverage")
    misses = 0
    for trial in range(200):
        low, high = bootstrap.bootstrap_interval(rng.normal(2.0, 1.0, 60), range(60), seed=str(trial), bootstrap=500)
        misses += not low <= 2.0 <= high
    assert 2 <= misses <= 26


def test_cluster_bootstrap_is_wider_when_rows_of_a_prompt_agree():
    """Eight nearly equal rows a prompt: the width grows by about sqrt(8) = 2.8 against rows taken as independent."""
    rng = generator(0, "correlated")
    values = np.repeat(rng.normal(size=50), 8) + 0.05 * rng.normal(size=400)
    by_prompt = np.diff(bootstrap.bootstrap_interval(values, np.repeat(np.arange(50), 8), seed="width"))[0]
    by_row = np.diff(bootstrap.bootstrap_interval(values, np.arange(400), seed="width"))[0]
    assert 2.2 < by_prompt / by_row < 3.4


def test_interval_agrees_with_the_standard_error():
    values = generator(0, "normal").normal(size=1000)
    summary = bootstrap.summarise(values, range(1000), seed="agree", bootstrap=4000)
    assert summary.high - summary.low == pytest.approx(2 * 1.96 * summary.se, rel=0.05)
    assert set(summary.to_dict()) == {"mean", "low", "high", "se", "n"} and summary.n == 1000


def test_the_seed_is_the_name(monkeypatch):
    values = generator(0, "values").normal(size=40)
    first = bootstrap.bootstrap_interval(values, range(40), seed="one")
    assert first == bootstrap.bootstrap_interval(values, range(40), seed="one")
    assert first != bootstrap.bootstrap_interval(values, range(40), seed="two")
    monkeypatch.setattr(bootstrap, "RESAMPLED_AT_ONCE", 40 * 7)  # memory must not matter
    assert first == bootstrap.bootstrap_interval(values, range(40), seed="one")


def test_the_order_of_rows_does_not_matter():
    values, prompts = np.array([1.0, 2.0, 3.0, 5.0]), np.array([4, 4, 7, 9])
    turned = np.array([2, 0, 3, 1])
    assert bootstrap.summarise(values, prompts, seed="s") == bootstrap.summarise(
        values[turned], prompts[turned], seed="s"
    )


def test_one_prompt_has_no_interval():
    with pytest.raises(UserError, match="at least 2 prompts, got 1"):
        bootstrap.summarise([1, 2, 3], [5, 5, 5], seed="one")


def test_a_value_that_is_no_number_is_refused_with_its_row():
    with pytest.raises(UserError, match="row 2"):
        bootstrap.summarise([1, float("nan")], [0, 1], seed="nan")


@pytest.mark.parametrize("verdict", [0.0, 1.0])
def test_a_win_rate_of_all_or_nothing_has_an_interval_with_a_width(verdict: float):
    """Wilson's of 0 of 8 is [0, 0.3244], of 8 of 8 [0.6756, 1]; two answers to each prompt add nothing."""
    low, high = (0.6756, 1) if verdict else (0, 0.3244)
    for repeats in (1, 2):
        rate = bootstrap.win_rate(np.full(8 * repeats, verdict), np.arange(8 * repeats) % 8, seed="all")
        assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-4)
    for number in range(2, 200):  # whatever is rounded, the interval holds the share
        rate = bootstrap.win_rate(np.full(number, verdict), np.arange(number), seed="all")
        assert rate.low <= rate.win_rate <= rate.high
