"""The value head: a number for every position that predicts a response token.

Shapes: B comparisons of K responses; T response tokens; D hidden size.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefdag.config.online.methods import TokenMethod
from prefdag.errors import UserError
from prefdag.models.loading import load_scorer
from prefdag.models.ops.device import at_least_float32
from prefdag.models.packing import Segments
from prefdag.models.policy_stats import states_of
from prefdag.models.route import route_of
from prefdag.rewards.model import head_of_scorer
from prefdag.seeds import named_seed


@dataclass(frozen=True)
class Critic:
    """A value head on a trunk of its own, or on the policy's.

    Attributes:
        module: what it trains: a model with a scalar head, or the head alone.
        behind: whether it also values the position behind each response.
    """

    module: nn.Module
    behind: bool

    @property
    def is_shared(self) -> bool:
        """Whether the policy's trunk is read."""
        return isinstance(self.module, nn.Linear)

    def __call__(self, segments: Segments, policy_states: Tensor) -> Tensor:
        """Return the values before each response token [T], then behind each response [B * K] if asked for.

        policy_states: of the same positions, [T, D] or [T + B * K, D]; read with a shared trunk.
        """
        if isinstance(self.module, nn.Linear):
            states, head = policy_states, self.module
        else:
            assert isinstance(self.module, PreTrainedModel)
            states, head = states_of(self.module, segments, self.behind), head_of_scorer(self.module)
        with torch.autocast(states.device.type, enabled=False):
            return F.linear(states.to(head.weight.dtype), head.weight).squeeze(-1)


def load_critic(
    method: TokenMethod, policy: PreTrainedModel, folder: Path, reward: Path | None, seed: int, device: torch.device
) -> Critic:
    """Make the value head as the method asks for it.

    Args:
        method: the options `value`, `value_from` and `score_at`.
        policy: the policy, whose hidden size a shared head has.
        folder: the policy's weights, from which an own trunk starts.
        reward: manifest of the reward model, if the head starts from it.
        seed: of a new head's weights.
        device: where to put it.

    Raises:
        UserError: the reward model has another number of heads or another width, or the policy's hidden states cannot
            be read.
    """
    behind = method.score_at == "after_eos"
    if method.value == "shared" and route_of(policy).head == "model":
        raise UserError(
            f"{folder}: its logits are no linear function of hidden states ({route_of(policy).reason}), which a shared "
            "value head reads; say `value: own`, or take rloo"
        )
    weight = None
    if method.value_from == "reward":
        if reward is None:
            raise UserError("policy --reward: the value head starts from the reward model; give its manifest")
        model = load_scorer(reward.parent / "model", device)
        weight = head_of_scorer(model).weight.detach()
        if len(weight) != 1:
            raise UserError(f"{reward}: has {len(weight)} heads, and a value head is one; say `value_from: policy`")
        if method.value == "own":
            return Critic(model, behind)
        width = policy.get_output_embeddings().weight.shape[1]
        if weight.shape[1] != width:
            raise UserError(
                f"{reward}: its head reads {weight.shape[1]} numbers, the policy has {width}; say `value: own`"
            )
    if method.value == "own":
        model = load_scorer(folder, device, new_heads=1)
        head = head_of_scorer(model)
    else:
        width = policy.get_output_embeddings().weight.shape[1]
        dtype = at_least_float32(next(policy.parameters()).new_empty(0)).dtype
        head = nn.Linear(width, 1, bias=False, device=device, dtype=dtype)
    head.weight.data.copy_(_new_head(head.weight, seed) if weight is None else weight)
    return Critic(model if method.value == "own" else head, behind)


def _new_head(weight: Tensor, seed: int) -> Tensor:
    """Draw a head's weights [1, D] with deviation 1 / sqrt(D + 1) (Huang et al. 2024)."""
    random = torch.Generator().manual_seed(named_seed(seed, "value head"))
    return torch.randn(weight.shape, generator=random) / (weight.shape[1] + 1) ** 0.5
