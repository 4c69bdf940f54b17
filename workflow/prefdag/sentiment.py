"""The ground-truth reward of the controlled sentiment experiment."""

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@cache
def _analyser() -> "SentimentIntensityAnalyzer":
    # Imported late: a stage that may score (but does not in this suite) should not pay for the lexicon.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def sentiment(texts: Iterable[str]) -> np.ndarray:
    """VADER's compound score of each text (Hutto and Gilbert 2014): float64 [N] in [-1, 1], 0 for no text."""
    analyser = _analyser()
    return np.array([analyser.polarity_scores(text)["compound"] for text in texts], dtype=np.float64)
