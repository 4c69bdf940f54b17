"""Small on-policy trainings: a model of 16 dimensions, random prompts, and a reward that counts a token."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from comparisons import EOS, comparisons, tiny, tiny_scorer
from prefdag.config.online.methods import TokenMethod, reads_values
from prefdag.config.runs import expanded
from prefdag.data.token_store import Comparison
from prefdag.distributed import ranks
from prefdag.errors import Mistakes
from prefdag.losses.registry import loss_of
from prefdag.models.naive import float64_norms
from prefdag.online.critic import Critic
from prefdag.online.loop import OnlineTraining
from prefdag.online.rewards import Scorer
from prefdag.online.round import Models
from prefdag.training.checkpoint import Checkpoint

PROMPTS = [one.prompt for one in comparisons(13, 1, seed=3)]
SETTINGS = {
    "batch_size": 5, "max_steps": 3, "max_new_tokens": 6, "learning_rate": 1e-2, "kl": 0.1, "tokens_per_batch": 40,
    "sampling_batch_size": 8, "max_grad_norm": 0.5,
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "ppo": {"method": "ppo", "epochs": 2, "minibatches": 2, "kl": {"target": 0.5}, "normalise_rewards": "standard"},
    "ppo shared": {"method": "ppo", "value": "shared", "score_at": "after_eos", "epochs": 2, "entropy": 0.01},
    "ppo one update": {"method": "ppo", "tokens_per_batch": 4096, "whiten": "sample"},
    "reinforce": {"method": "reinforce", "baseline": "greedy", "missing_eos": {"penalty": 0.5, "how": "replace"}},
    "rloo": {"method": "rloo", "samples": 3, "minibatches": 2, "temperature": 0.7},
    "grpo": {"method": "grpo", "samples": 3, "kl": {"coefficient": 0.1, "where": "loss", "estimator": "ratio_k3"}},
    "online dpo": {"method": "dpo", "beta": 0.5, "epochs": 2, "online": {"labels": "bradley_terry"}},
    "online ipo": {"method": "ipo", "beta": 0.5, "logprob": "summed", "minibatches": 2, "online": {"labels": "soft"}},
    "dr_grpo": {"method": "dr_grpo", "samples": 3, "kl": {"coefficient": 0.1, "where": "loss", "estimator": "full"}},
}


def counted_token(compared: Sequence[Comparison], token: int = 7) -> NDArray[np.float64]:
    """The share of a response's tokens below `token`, a half more if it ended."""
    return np.array([[(ids < token).mean() + 0.5 * (ids[-1] == EOS) for ids in one.responses] for one in compared])


def online_training(
    row: dict[str, Any],
    checkpoint: Checkpoint | None = None,
    dtype: torch.dtype = torch.float32,
    scorer: Scorer = counted_token,
    **hooks: Callable[..., None],
) -> OnlineTraining:
    """A training, everything in it new except the checkpoint."""
    mistakes = Mistakes()
    (run,) = expanded([{"name": "row", **row}], {}, SETTINGS, "tests", mistakes)
    method, settings = run.objective, run.preference
    settings = settings.model_copy(update={"processes": ranks.num_ranks()})
    policy, reference = (tiny(dtype=dtype) for _ in range(2))
    critic = None
    if isinstance(method, TokenMethod) and reads_values(method):
        module = tiny_scorer(seed=1).to(dtype)
        if method.value == "shared":
            module = nn.Linear(16, 1, bias=False, dtype=dtype)
            module.weight.data = tiny_scorer(seed=1).score.weight.data.to(dtype)
        critic = Critic(module, method.score_at == "after_eos")
    models = Models(policy.train(), reference.requires_grad_(False), critic)
    if settings.labels is not None:
        hooks["pair_loss"] = lambda policy, reference: loss_of(method)(policy, reference=reference)
    return OnlineTraining(models, method, settings, PROMPTS, scorer, EOS, checkpoint, **hooks)


def state_of(training: OnlineTraining) -> dict[str, torch.Tensor]:
    """Weights of policy and value head."""
    critic = training.models.critic
    parts = {"policy": training.models.policy, **({} if critic is None else {"value": critic.module})}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


class OnlineTrial:
    """One on-policy training in a crew of processes (`ranks.crew`)."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row

    def run(self, folder: Path) -> dict[str, Any]:
        gradients: list[torch.Tensor] = []
        with float64_norms():
            training = online_training(self.row, dtype=torch.float64)
            training.optimizers = watched(training, gradients)
            records = list(training.rounds())
        return {"records": [step.values() for step in records], "gradients": gradients, "weights": state_of(training)}


def watched(training: OnlineTraining, seen: list[torch.Tensor]) -> Any:
    """The training's optimizers, noting the gradient of every update as one row before it is clipped."""
    inner = training.optimizers

    class Watched(type(inner)):  # type: ignore[misc]
        def step(self, rates: tuple[float, float], max_norm: float | None) -> dict[str, float]:
            from prefdag.online import optimizers as module

            clip, parts = module.clip_gradients, list[torch.Tensor]()

            def watching(parameters: Sequence[nn.Parameter], most: float) -> float:
                parts.extend(one.grad.flatten().clone() for one in parameters if one.grad is not None)
                return clip(parameters, most)

            module.clip_gradients = watching
            try:
                norms = super().step(rates, max_norm)
            finally:
                module.clip_gradients = clip
            seen.append(torch.cat(parts))
            return norms

    return Watched(inner.policy, inner.critic)
