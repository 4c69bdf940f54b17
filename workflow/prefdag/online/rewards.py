"""Score a round's responses: by a ground truth, a trained reward model, another run, or a user's function.

Shapes: N prompts of G responses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefdag.config.online.settings import MissingEnd, Online
from prefdag.data.detokenize import decode_response
from prefdag.data.token_store import Comparison
from prefdag.errors import UserError
from prefdag.provenance.manifest import read_manifest
from prefdag.rewards.adoption import load_any_reward
from prefdag.rewards.evaluation import Rewards, score_all
from prefdag.rewards.ground_truth import load_ground_truth
from prefdag.rewards.implicit import ImplicitReward
from prefdag.rewards.user_function import user_function
from prefdag.seeds import generator

AFTER_A_RERUN = "the training continues at this round, or starts again if the reward's file or settings have changed"
Scorer = Callable[[Sequence[Comparison]], NDArray[np.float64]]  # N prompts with G responses to scores [N, G]


@dataclass(frozen=True)
class Sources:
    """Manifests of what may score, as far as the run reads them; or a scorer of texts that compares two responses."""

    reward: Path | None = None
    classifier: Path | None = None
    implicit: Path | None = None
    compare: Callable[[list[str], list[str]], NDArray[np.float64]] | None = None


def load_scorer(
    settings: Online,
    sources: Sources,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel,
    device: torch.device,
) -> Scorer:
    """Return the scorer that the settings name. Raises `UserError` if its manifest is missing."""
    if sources.compare is not None:
        return _text_scorer(sources.compare, tokenizer)
    if settings.user_reward is not None:
        return _text_scorer(user_function(*settings.user_reward), tokenizer)
    if settings.reward == "trained":
        if sources.reward is None:
            raise UserError("policy --reward: the reward is a trained model; give its manifest")
        return _model_scorer(load_any_reward(sources.reward.parent, device), settings.tokens_per_batch, device)
    if settings.implicit_run is not None:
        if sources.implicit is None:
            raise UserError(f"policy --implicit: give the manifest of the run {settings.implicit_run}")
        run = ImplicitReward.of_run(read_manifest(sources.implicit), reference, device)
        return _model_scorer(run, settings.tokens_per_batch, device)
    truth = load_ground_truth(settings.reward, sources.classifier, device)

    def of_texts(prompts: Sequence[str], responses: Sequence[str]) -> Any:
        return truth([prompt + response for prompt, response in zip(prompts, responses, strict=True)])

    return _text_scorer(of_texts, tokenizer)


def _model_scorer(rewards: Rewards, tokens_per_batch: int, device: torch.device) -> Scorer:
    return lambda comparisons: score_all(rewards, comparisons, tokens_per_batch, device).astype(np.float64)


def _text_scorer(function: Callable[[list[str], list[str]], Any], tokenizer: PreTrainedTokenizerBase) -> Scorer:
    """Return a scorer of texts. function(prompts, responses): a number for each response."""

    def score(comparisons: Sequence[Comparison]) -> NDArray[np.float64]:
        texts = [
            decode_response(tokenizer, one.prompt.tolist(), response.tolist())
            for one in comparisons
            for response in one.responses
        ]
        values = function([prompt for prompt, _ in texts], [response for _, response in texts])
        return np.asarray(values, dtype=np.float64).reshape(len(comparisons), -1)

    return score


def check_scores(scores: NDArray[np.float64], comparisons: Sequence[Comparison], reward: str, number: int) -> None:
    """Raise `UserError` if a score is not a finite number, or their number is wrong. number: the round, from 0."""
    expected = len(comparisons), len(comparisons[0].responses)
    if scores.shape != expected:
        raise UserError(
            f"round {number + 1}: {reward} returned {scores.size} scores for {math.prod(expected)} responses"
        )
    wrong = np.argwhere(~np.isfinite(scores))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise UserError(
            f"round {number + 1}: {reward} scored sample {column} of the round's prompt {row} as {scores[row, column]} "
            f"({len(wrong)} of {scores.size} scores are not finite); fix the reward and rerun: {AFTER_A_RERUN}"
        )


def with_missing_ends(scores: Tensor, ended: Tensor, rule: MissingEnd | None) -> Tensor:
    """Return the scores [N, G] after the rule for responses without end-of-turn; `mask` leaves them as they are."""
    if rule is None or rule.how == "mask":
        return scores
    replaced = scores - rule.penalty if rule.how == "subtract" else torch.full_like(scores, -rule.penalty)
    return torch.where(ended, scores, replaced)


def labels_of(scores: Tensor, prompts: Tensor, number: int, settings: Online) -> Tensor:
    """Return how much the first of two responses is preferred, 0 to 1: [N].

    Args:
        scores: of the responses, [N, 2].
        prompts: the index of each prompt, which names its random number, [N].
        number: the round, from 0.
        settings: seed and `labels`.

    Reference: Bradley and Terry 1952; Guo et al. 2024, arXiv 2402.04792 (hard labels).
    """
    if settings.judge is not None:
        return scores[:, 0].double()  # the verdict, one half of a tie
    gap = scores[:, 0] - scores[:, 1]
    if settings.labels == "hard":
        return (gap >= 0).double()
    if settings.labels == "soft":
        return gap.sigmoid()
    noise = [generator(settings.seed, "labels", number, index).random() for index in prompts.tolist()]
    return (torch.tensor(noise, dtype=torch.float64) < gap.sigmoid()).double()


@dataclass(frozen=True)
class Moments:
    """Running mean and variance of scores (Chan et al. 1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def updated(self, scores: Tensor) -> "Moments":
        """Return the moments with the scores of a further round, of any shape."""
        num, mean = scores.numel(), scores.double().mean().item()
        squares = ((scores.double() - mean) ** 2).sum().item()
        total, delta = self.count + num, mean - self.mean
        between = delta**2 * self.count * num / total
        return Moments(total, self.mean + delta * num / total, self.squares + squares + between)

    @property
    def deviation(self) -> float:
        """Return the standard deviation over n - 1; 1 while it is not defined or 0."""
        variance = self.squares / (self.count - 1) if self.count > 1 else 0.0
        return math.sqrt(variance) if variance > 0 else 1.0

    def normalise(self, scores: Tensor, how: str) -> Tensor:
        """Return scores divided by the deviation; `standard` subtracts the mean first, `off` does neither."""
        if how == "off":
            return scores
        return (scores - (self.mean if how == "standard" else 0.0)) / self.deviation
