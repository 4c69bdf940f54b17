"""Score a store with a reward, and measure and write how often it prefers the better response."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefdag.data.token_store import Comparison, Store
from prefdag.evaluation.bootstrap import share_interval
from prefdag.models.ops.device import autocast
from prefdag.models.packing import Segments
from prefdag.models.repeats import iter_packed

Rewards = Callable[[Segments], Tensor]  # the reward of every response: [B, K]


@torch.no_grad()
def score_all(
    rewards: Rewards, comparisons: Sequence[Comparison] | Store, tokens_per_batch: int, device: torch.device
) -> NDArray[np.float32]:
    """Compute the reward of every response of every comparison: [N, K], or [N, K, H] of separate heads."""
    if translate := getattr(rewards, "translated", None):  # into the tokens of a fetched reward model
        comparisons = translate(comparisons)
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
    low, high = share_interval(right, prompts, seed="reward accuracy")
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
