"""Ground truths of controlled experiments: each a function from texts (prompt and response) to numbers.

To add one, write a function with the decorator `ground_truth`. A suite names it by the function's name.
"""

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
_FUNCTIONS: dict[str, GroundTruth] = {}

if TYPE_CHECKING:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


def ground_truth(function: GroundTruth) -> GroundTruth:
    """Register a ground truth; `prefdag.config.sections.ground_truths` reads its name from the source text."""
    _FUNCTIONS[function.__name__] = function
    return function


@ground_truth
def vader(texts: Iterable[str]) -> NDArray[np.float64]:
    """Return VADER's compound score (Hutto and Gilbert 2014) of each text: [N] in [-1, 1], 0 for an empty text."""
    analyser = _analyser()
    return np.array([analyser.polarity_scores(text)["compound"] for text in texts], dtype=np.float64)


@cache
def _analyser() -> "SentimentIntensityAnalyzer":
    # Imported late: a stage that may score (but does not in this suite) should not pay for the lexicon.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def load_ground_truth(reward: str, classifier: Path | None, device: torch.device) -> GroundTruth:
    """Return a ground truth by its name.

    Args:
        reward: the name of a function with the decorator, or `classifier` for P(positive) of a classifier.
        classifier: the manifest of the classifier, if the suite has one.
        device: where the classifier runs.

    Raises:
        UserError: the reward is `classifier` and no manifest is given.
    """
    if reward in _FUNCTIONS:
        return _FUNCTIONS[reward]
    assert reward == "classifier", reward
    if classifier is None:
        raise UserError("reward: the ground truth is a classifier; give its manifest as --classifier")
    # Imported late: a suite labelled by VADER should not pay for scikit-learn.
    from prefdag.rewards.classifier import load_classifier

    return load_classifier(read_manifest(classifier), device)
