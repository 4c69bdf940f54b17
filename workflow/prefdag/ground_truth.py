"""The ground truth of a controlled experiment: one function from texts (prompt and response) to numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prefdag.errors import UserError
from prefdag.manifest import read_manifest
from prefdag.sentiment import sentiment

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
    from prefdag.classifiers import load_classifier

    return load_classifier(read_manifest(classifier), device)
