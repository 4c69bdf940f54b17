"""Reward models: a scalar head on the SFT policy, read at each response's last token, in float32."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefdag.logprobs import hidden_states, margin
from prefdag.models import autocast
from prefdag.seeds import named_seed
from prefdag.segments import Segments, packed
from prefdag.statistics import bootstrap_interval
from prefdag.store import Comparison, Store


def rewards(model: PreTrainedModel, segments: Segments) -> Tensor:
    """Reward of every response: [B, K], float32. A row alone scores the same as in a batch."""
    states = hidden_states(model, segments)[segments.last.flatten()]
    with torch.autocast(states.device.type, enabled=False):
        head = head_of_scorer(model)
        return F.linear(states.to(head.weight.dtype), head.weight).view(segments.last.shape)


def bradley_terry(values: Tensor) -> Tensor:
    """Bradley and Terry 1952: -log s(r_w - r_l), rewards [B, 2] -> [B]."""
    return -F.logsigmoid(margin(values))


def head_of_scorer(model: PreTrainedModel) -> nn.Linear:
    """The scalar head: hidden states [..., D] to rewards [..., 1]."""
    assert isinstance(model.score, nn.Linear)
    return model.score


def initial_head(model: PreTrainedModel, std: float, seed: int) -> None:
    """Draw the untrained head's weights."""
    random = torch.Generator().manual_seed(named_seed(seed, "reward head"))
    head = head_of_scorer(model)
    head.weight.data.copy_(torch.randn(head.weight.shape, generator=random) * std)


def load_head(model: PreTrainedModel, path: Path) -> None:
    head = head_of_scorer(model)
    head.weight.data.copy_(load_file(path)["score.weight"])


@torch.no_grad()
def score_all(
    model: PreTrainedModel, comparisons: Sequence[Comparison] | Store, tokens_per_batch: int
) -> NDArray[np.float32]:
    """Rewards of every response of every comparison: [N, K]."""
    device = next(model.parameters()).device
    found = np.zeros((len(comparisons), len(comparisons[0].responses)), dtype=np.float32)
    for ids, segments in packed(comparisons, tokens_per_batch):
        with autocast(device):
            found[ids] = rewards(model, segments.to(device)).cpu().numpy()
    return found


def evaluation(values: NDArray[np.float32], prompts: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy (ties half) with its interval over prompts, mean and deviation of all rewards.

    values: [N, 2], chosen first; prompts: [N]. Comparisons of one prompt share responses, so they count as one draw.
    """
    right = (values[:, 0] > values[:, 1]) + 0.5 * (values[:, 0] == values[:, 1])
    low, high = bootstrap_interval(right, prompts, seed="reward accuracy")
    accuracy = {"accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}
    return {
        **accuracy,
        "mean": float(values.mean(dtype=float)),
        "std": float(values.std(dtype=float)),
        "n": len(values),
    }


def write_evaluation(path: Path, before: dict[str, float], after: dict[str, float]) -> None:
    path.write_text(json.dumps({"before": before, "after": after}, indent=1, sort_keys=True) + "\n")
