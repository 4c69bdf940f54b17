"""Reward models: scalar heads on the SFT policy, and the implicit reward of an aligned policy.

Shapes: B comparisons of K responses; H heads, those of every member of an ensemble one after the other.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefdag.data.token_store import Comparison, Store
from prefdag.errors import UserError
from prefdag.evaluation.bootstrap import bootstrap_interval
from prefdag.models.loading import load_policy, load_scorer
from prefdag.models.logprobs import hidden_states, logprobs
from prefdag.models.ops.device import autocast
from prefdag.models.packing import Segments, iter_packed
from prefdag.provenance.manifest import Manifest
from prefdag.schema import NonNegative, Section
from prefdag.seeds import named_seed

Rewards = Callable[[Segments], Tensor]  # the reward of every response: [B, K]
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


@dataclass(frozen=True)
class ImplicitReward:
    """Rafailov et al. 2023, section 4: beta (log pi(y|x) - log pi_ref(y|x)), the reward that an aligned policy is
    optimal for, without its prompt's constant beta log Z(x)."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    beta: float

    @classmethod
    def of_run(cls, run: Manifest, reference: PreTrainedModel, device: torch.device) -> Self:
        """Load it from a run of the stage `preference`, with the beta of its training.

        Raises:
            UserError: the run's loss has no beta or reads no reference.
        """
        objective = run.content["config"].get("objective", {})
        if "beta" not in objective or "reference" not in run.content["inputs"]:
            raise UserError(f"{run.path}: no implicit reward; name a run whose loss has a beta and reads the reference")
        return cls(load_policy(run.folder / "model", device), reference, float(objective["beta"]))

    def __call__(self, segments: Segments) -> Tensor:
        """Implicit reward of every response: [B, K], float32."""
        return self.beta * (logprobs(self.policy, segments) - logprobs(self.reference, segments)).total


@torch.no_grad()
def score_all(
    rewards: Rewards, comparisons: Sequence[Comparison] | Store, tokens_per_batch: int, device: torch.device
) -> NDArray[np.float32]:
    """Compute the reward of every response of every comparison: [N, K], or [N, K, H] of separate heads."""
    result: NDArray[np.float32] | None = None
    for ids, segments in iter_packed(comparisons, tokens_per_batch):
        with autocast(device):
            values = rewards(segments.to(device)).cpu().numpy()
        if result is None:
            result = np.zeros((len(comparisons), *values.shape[1:]), dtype=np.float32)
        result[ids] = values
    assert result is not None, "there is something to score"
    return result


def evaluation(values: NDArray[np.float32], prompts: NDArray[np.int64]) -> dict[str, float]:
    """Return accuracy (ties count half) with its interval over prompts, and mean and deviation of all rewards.

    values: [N, K], best first; prompts: [N]. A comparison's accuracy is the share of its ordered pairs that are ranked
    right. Comparisons of one prompt share responses, so they count as one draw.
    """
    better, worse = np.triu_indices(values.shape[1], 1)
    above, below = values[:, better], values[:, worse]
    right = ((above > below) + 0.5 * (above == below)).mean(1)
    low, high = bootstrap_interval(right, prompts, seed="reward accuracy")
    accuracy = {"accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}
    return {
        **accuracy,
        "mean": float(values.mean(dtype=float)),
        "std": float(values.std(dtype=float)),
        "n": len(values),
    }


def write_evaluation(path: Path, evaluations: dict[str, dict[str, float]]) -> None:
    """Write evaluations by name, in the order in which the report shows them."""
    path.write_text(json.dumps(evaluations, indent=1) + "\n")


def write_held_out(path: Path, store: Store, rewards: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a line per held-out comparison: row, prompt, counted tokens and all rewards of each response, best first.

    rewards: name -> [N, K]; the columns are <name>_chosen and <name>_rejected, <name>_rank1 to K of K > 2 responses.
    """
    places = ranks(store.num_responses)
    tokens = np.diff(np.asarray(store.offsets), axis=1)[:, 1:]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["row", "prompt", *(f"{name}_{place}" for name in ("tokens", *rewards) for place in places)])
        for index, (row, prompt) in enumerate(zip(store.rows, store.prompts, strict=True)):
            numbers = [float(value) for values in rewards.values() for value in values[index]]
            writer.writerow([int(row), int(prompt), *map(int, tokens[index]), *numbers])


def ranks(num_responses: int) -> list[str]:
    """Return the names of a comparison's responses, best first."""
    return ["chosen", "rejected"] if num_responses == 2 else [f"rank{place + 1}" for place in range(num_responses)]
