"""Words that distinguish chosen from rejected responses, and the map of their texts."""

import math

import numpy as np
import pytest

from prefdag.evaluation.text_stats import distinctive_words, log_odds, text_map, words
from prefdag.reporting.figures.texts import text_map_figure, words_figure


def test_words_are_runs_of_letters():
    assert words("It's GOOD, naïve_plot 2x; don't!") == ["it's", "good", "naïve", "plot", "x", "don't"]


def test_log_odds_by_hand():
    """`good` 6 of 10 and 2 of 10, prior 4 words: pseudo-counts 4 * 8 / 20 = 1.6.

    ln(7.6 / (10 + 4 - 7.6)) - ln(3.6 / (10 + 4 - 3.6)), variance 1 / 7.6 + 1 / 3.6.
    """
    result = log_odds([6, 4], [2, 8], prior=4.0)
    delta = math.log(7.6 / 6.4) - math.log(3.6 / 10.4)
    assert result["delta"].tolist() == pytest.approx([delta, -delta])
    assert result["z"][0] == pytest.approx(delta / math.sqrt(1 / 7.6 + 1 / 3.6))


def test_a_rare_word_is_not_the_most_telling():
    """Used once and on one side, it has the largest plain ratio; 30 times more often is stronger evidence."""
    chosen = ["good film"] * 60 + ["bad film"] * 30 + ["zither film"]
    rejected = ["good film"] * 30 + ["bad film"] * 60 + ["a film"]
    result = distinctive_words(chosen, rejected, np.arange(91))
    assert result["word"].iloc[0] == "good" and result["word"].iloc[-1] == "bad"
    good = result.iloc[0]
    assert (good["chosen"], good["rejected"]) == (60, 30) and 0 < good["low"] < good["delta"] < good["high"]


def test_the_interval_draws_prompts_and_not_words():
    """Five times the same texts of the same prompts: five times the words, and intervals no narrower for it."""
    chosen, rejected = ["fine"] * 6 + ["dull"] * 4, ["fine"] * 3 + ["dull"] * 7
    once = distinctive_words(chosen * 50, rejected * 50, np.tile(np.arange(10), 50))
    more = distinctive_words(chosen * 250, rejected * 250, np.tile(np.arange(10), 250))
    widths = [(table["high"] - table["low"])[0] for table in (once, more)]
    assert widths[1] > 0.9 * widths[0]
    assert more["z"][0] > 2 * once["z"][0]


def test_texts_about_two_things_lie_apart():
    """Two vocabularies: the first component separates them; the same texts give the same points."""
    texts = [f"sea ship {tail}" for tail in ("sail", "wind", "salt", "wave")]
    texts += [f"moon star {tail}" for tail in ("sky", "night", "orbit", "dust")]
    points, share = text_map(texts)
    first = points[:, 0]
    assert max(first[:4]) < 0 < min(first[4:]) or max(first[4:]) < 0 < min(first[:4])
    assert 0 < share[1] <= share[0] < 1
    assert np.array_equal(text_map(texts)[0], points)


@pytest.mark.parametrize("texts", [["", " 12 "], ["one word", "one word"]])
def test_texts_without_words_or_variety_have_no_figure(texts: list[str]):
    assert text_map_figure(texts, texts, np.arange(2)) is None
    assert words_figure(["", "1"], ["", "2"], np.arange(2)) is None
