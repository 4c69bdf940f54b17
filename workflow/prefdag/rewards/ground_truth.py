"""The ground truth of a controlled experiment: one function from texts (prompt and response) to numbers."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from prefdag.errors import UserError
from prefdag.provenance.manifest import read_manifest

GroundTruth = Callable[[Sequence[str]], NDArray[np.float64]]  # N texts -> [N]


def ground_truth(reward: str, classifier: Path | None, device: torch.device) -> GroundTruth:
    """VADER's compound score in [-1, 1], or P(positive) of the classifier whose manifest is given.

    Raises `UserError` where a classifier is asked for and none is given.
    """
    if reward == "vader":
        return sentiment
    assert reward == "classifier", reward
    if classifier is None:
        raise UserError("reward: the ground truth is a classifier; give its manifest as --classifier")
    # Imported late: a suite labelled by VADER should not pay for scikit-learn.
    from prefdag.rewards.classifier import load_classifier

    return load_classifier(read_manifest(classifier), device)


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
