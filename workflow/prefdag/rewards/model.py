"""Reward models: scalar heads on the SFT policy, and the implicit reward of an aligned policy.

Shapes: B comparisons of K responses; H heads, those of every member of an ensemble one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefdag.errors import UserError
from prefdag.models.loading import load_scorer
from prefdag.models.logprobs import hidden_states
from prefdag.models.packing import Segments
from prefdag.schema import NonNegative, Section
from prefdag.seeds import named_seed

HEADS, SCORING = "head.safetensors", "scoring.json"


class Scoring(Section):
    """How the heads' values become one reward, as saved in `scoring.json`.

    seeds: of the members. offset [H]: subtracted from each head's value, empty where nothing is.
    """

    seeds: tuple[int, ...] = (0,)
    length_normalisation: NonNegative | None = None
    combine: Literal["mean", "mean_minus_deviation", "minimum"] = "mean"
    offset: tuple[float, ...] = ()


@dataclass(frozen=True)
class RewardModel:
    """An ensemble of members (one model for each seed), each with one or more heads on its trunk."""

    members: tuple[PreTrainedModel, ...]
    scoring: Scoring = field(default_factory=Scoring)

    def __call__(self, segments: Segments) -> Tensor:
        """Reward of every response: [B, K], float32. A row alone scores the same as in a batch."""
        return reward_of(self.values(segments), self.scoring)

    def values(self, segments: Segments) -> Tensor:
        """Return the value of every head for every response: [B, K, H], before offsets."""
        return torch.cat([head_rewards(model, segments, self.scoring) for model in self.members], -1)


def head_rewards(model: PreTrainedModel, segments: Segments, scoring: Scoring) -> Tensor:
    """Return the value of every head of one model for every response: [B, K, heads], before offsets.

    The head is read at the response's last token; with length normalisation it is r / (alpha + n) of n tokens.
    """
    states = hidden_states(model, segments, segments.ending)
    with torch.autocast(states.device.type, enabled=False):
        head = head_of_scorer(model)
        values = F.linear(states.to(head.weight.dtype), head.weight).view(*segments.shape, -1)
        if scoring.length_normalisation is None:
            return values
        return values / (scoring.length_normalisation + lengths_of(segments))[..., None]


def lengths_of(segments: Segments) -> Tensor:
    """Counted tokens of every response: [B, K]."""
    counts = torch.zeros_like(segments.last).flatten()  # CUDA waits for `bincount`
    return counts.index_add(0, segments.owner, torch.ones_like(segments.owner)).view(segments.shape)


def reward_of(values: Tensor, scoring: Scoring) -> Tensor:
    """One reward from the heads' values: [..., H] -> [...]."""
    if scoring.offset:
        values = values - values.new_tensor(scoring.offset)
    return combined(values, scoring.combine)


def combined(values: Tensor, how: str) -> Tensor:
    """Mean, mean minus deviation (over all H, not H - 1) or minimum over heads: [..., H] -> [...].

    Coste et al. 2023, section 3 (minimum: worst-case optimization); Eisenstein et al. 2023 (mean minus deviation).
    """
    match how:
        case "mean":
            return values.mean(-1)
        case "mean_minus_deviation":
            return values.mean(-1) - values.std(-1, correction=0)
    assert how == "minimum"
    return values.amin(-1)


def zero_mean(values: NDArray[np.float32], scoring: Scoring) -> Scoring:
    """The scoring whose rewards have mean 0 over the responses that `values` [N, K, H] are of.

    Rafailov et al. 2023, section 3. A Bradley-Terry head is known up to a constant, so each head's own mean goes first:
    only then do deviation and minimum compare like with like. What is left of the combined mean goes from all.
    """
    means = values.mean((0, 1), dtype=float)
    centred = torch.from_numpy(values - means)
    left = combined(centred, scoring.combine).mean().item()
    return scoring.model_copy(update={"offset": tuple((means + left).tolist())})


def head_of_scorer(model: PreTrainedModel) -> nn.Linear:
    """The heads: hidden states [..., D] to rewards [..., heads]."""
    assert isinstance(model.score, nn.Linear)
    return model.score


def initial_heads(model: PreTrainedModel, std: float, seeds: Sequence[int]) -> None:
    """Draw the untrained heads' weights, an equal number for each seed, the same however many there are."""
    weight = head_of_scorer(model).weight
    heads = len(weight) // len(seeds)
    for row in range(len(weight)):
        place, number = divmod(row, heads)
        purpose = ("reward head", number) if number else ("reward head",)
        random = torch.Generator().manual_seed(named_seed(seeds[place], *purpose))
        weight.data[row] = torch.randn(weight.shape[1], generator=random) * std


def save_untrained(model: PreTrainedModel, folder: Path) -> None:
    """The untrained heads, so that scoring can compare: before training all members share the SFT policy."""
    save_file({"score.weight": head_of_scorer(model).weight.detach().cpu().clone()}, folder / HEADS)


def untrained_reward_model(policy: Path, folder: Path, device: torch.device) -> RewardModel:
    """The reward model in `folder` as it was before training: its first heads on the policy, nothing subtracted."""
    weight = _heads(folder / HEADS)
    model = load_scorer(policy, device, new_heads=len(weight))
    head_of_scorer(model).weight.data.copy_(weight)
    return RewardModel((model,), _scoring(folder).model_copy(update={"offset": ()}))


def load_reward_model(folder: Path, device: torch.device) -> RewardModel:
    """The trained reward model that the stage `reward` left in `folder`, ready to score.

    Raises `UserError` for a folder without scoring.json, without its heads, or with others than scoring.json is of.
    """
    scoring = _scoring(folder)
    members = tuple(
        load_scorer(member_folder(folder, place, scoring.seeds), device) for place in range(len(scoring.seeds))
    )
    heads = sum(len(head_of_scorer(model).weight) for model in members)
    if scoring.offset and len(scoring.offset) != heads:
        raise UserError(
            f"{folder / SCORING}: offset has {len(scoring.offset)} numbers for {heads} heads; rerun `reward`"
        )
    return RewardModel(members, scoring)


def member_folder(folder: Path, place: int, seeds: Sequence[int]) -> Path:
    """Return a member's folder: model/ for the first, as in every stage; seeds/<seed>/ for the others."""
    return folder / f"seeds/{seeds[place]}" if place else folder / "model"


def _scoring(folder: Path) -> Scoring:
    path = folder / SCORING
    if not path.is_file():
        raise UserError(f"{folder}: holds no {SCORING}, so it is no reward model; rerun `reward`")
    return Scoring.parse_json(path.read_text(), str(path))


def _heads(path: Path) -> Tensor:
    if not path.is_file():
        raise UserError(f"{path}: the untrained heads are missing; rerun `reward`")
    return load_file(path)["score.weight"]
