"""Distances between the segment path and the padded path, for the equality tests and their broken twins."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from comparisons import ARCHITECTURES, Values, distance, measured, naive_rewards, weights
from prefdag.data.token_store import Comparison
from prefdag.losses.reward_model import bradley_terry
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.naive import naive_logprobs
from prefdag.models.packing import Segments
from prefdag.rewards.model import RewardModel
from registry import example_for

TOLERANCE = 1e-9
Rows = list[list[int]] | None
PACKINGS: dict[str, Rows] = {
    "a row each": None,
    "one row": [[0, 1, 2, 3, 4, 5]],
    "shuffled": [[0, 3], [5, 1, 2], [4]],
    "ends first": [[5, 4, 3, 2, 1, 0]],
}


def of_tokens(policy: LogProbs) -> Values:
    """Per-token values, sums, and a loss that weighs every token differently."""
    return {"tokens": policy.tokens, "total": policy.total, "loss": (policy.tokens * weights(len(policy.tokens))).sum()}


def of_loss(row: dict[str, Any], reference: LogProbs) -> Callable[[LogProbs], Values]:
    """The loss of the log-probs, its other inputs being given."""
    inputs, each_token = example_for(row), weights(len(reference.tokens)).abs()
    inputs = inputs.with_(reference=reference, collision=reference.tokens, divergence=each_token)

    def values(policy: LogProbs) -> Values:
        each = inputs.with_(policy).loss(**row)
        return {"each": each, "loss": each.sum()}

    return values


def on_every_case(test: Callable[..., None]) -> Callable[..., None]:
    """The test for every architecture, 1 to 3 responses and every packing."""
    for names, values, ids in (
        ("rows", PACKINGS.values(), PACKINGS),
        ("num_responses", (1, 2, 3), None),
        ("architecture", ARCHITECTURES, None),
    ):
        test = pytest.mark.parametrize(names, values, ids=ids)(test)
    return test


def logprob_distance(
    model: PreTrainedModel,
    pairs: Sequence[Comparison],
    segments: Segments,
    values: Callable[[LogProbs], Values] = of_tokens,
) -> float:
    """How far the segment path is from the padded path, gradients included. The broken twins are put through it too."""
    fast = measured(model, lambda: values(logprobs(model, segments)))
    slow = measured(model, lambda: values(naive_logprobs(model, pairs)))
    return distance(fast, slow)


def reward_distance(model: PreTrainedModel, pairs: Sequence[Comparison], segments: Segments) -> float:
    """The same for the score head and the Bradley-Terry loss."""

    def of(scores: Tensor) -> Values:
        each = bradley_terry(scores)
        return {"scores": scores, "each": each, "loss": each.sum()}

    fast = measured(model, lambda: of(RewardModel((model,))(segments)))
    slow = measured(model, lambda: of(naive_rewards(model, pairs)))
    return distance(fast, slow)
