"""The optimizers of policy and value head."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prefdag.distributed.fsdp import ShardedOptimizer, clip_gradients, reduce_gradients
from prefdag.distributed.ranks import num_ranks


@dataclass(frozen=True)
class Optimizers:
    """Optimizers of the policy and of the value head, whose gradients are clipped apart."""

    policy: ShardedOptimizer
    critic: ShardedOptimizer | None

    def step(self, rates: tuple[float, float], max_norm: float | None) -> dict[str, float]:
        """Reduce, clip and apply the gradients; return their norms. rates: learning rates of both."""
        norms = {}
        for name, optimizer in (("policy", self.policy), ("value", self.critic)):
            if optimizer is None:
                continue
            for parameter in optimizer.parameters:
                if parameter.grad is None and num_ranks() > 1:  # a process without a share of the update
                    parameter.grad = torch.zeros_like(parameter)
            reduce_gradients(optimizer.parameters)
            norms[f"{name}_grad_norm"] = clip_gradients(optimizer.parameters, max_norm or float("inf"))
        if all(np.isfinite(norm) for norm in norms.values()):
            self.policy.step(rates[0])
            if self.critic is not None:
                self.critic.step(rates[1])
        return norms

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "value": self.critic and self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        if self.critic is not None:
            self.critic.load_state_dict(state["value"])
