"""Policy-gradient methods in a world that can be enumerated: what of a method decides where it converges."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prefdag.config.objectives import Objective
from prefdag.config.optimum import POLICY_GRADIENT, Optimum, policy_gradient_optimum
from prefdag.errors import UserError
from prefdag.schema import NonNegative, Positive

# Options that only some methods read.
READ = {
    "reinforce": {"gamma"},
    "rloo": {"samples"},
    "dr_grpo": {"samples"},
    "grpo": {"samples", "eps"},
    "ppo": {"gamma", "lam", "critic_error"},
}
OF_SOME = set().union(*READ.values())


class ExactPolicy(Objective):
    """A policy-gradient method, followed by its expected updates."""

    family = "policy"
    reads: ClassVar[frozenset[str]] = frozenset({"reference", "scores"})
    responses = "many"

    method: Literal[POLICY_GRADIENT]  # type: ignore[valid-type]
    beta: NonNegative = Field(0.05, description="coefficient of the KL to the reference")
    where: Literal["reward", "loss"] = Field("reward", description="part of the reward, or a term of the loss")
    estimator: Literal["k1", "k2", "k3", "ratio_k1", "ratio_k3", "full"] = "k1"
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum"] = "sequence_sum"
    samples: int = Field(3, ge=2, le=4, description="of rloo, dr_grpo and grpo: responses per prompt")
    eps: Positive = Field(1e-4, description="of grpo: added to the deviation")
    gamma: float = Field(1.0, gt=0, le=1, description="of reinforce and ppo: discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="of ppo: lambda of GAE")
    critic_error: float = Field(0.0, description="of ppo: the critic of token t is off by this times t + 1")

    @model_validator(mode="after")
    def _options_are_read(self) -> Self:
        for option in sorted(OF_SOME - READ[self.method]):
            if getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option}: {self.method} does not read it; leave it out")
        return self

    def parameters(self) -> dict[str, Any]:
        """Return the options that the method reads."""
        return self.model_dump(exclude={"method", *(OF_SOME - READ[self.method])})

    @property
    def optimum(self) -> Optimum:
        return policy_gradient_optimum(
            self.method,
            coefficient=self.beta,
            where=self.where,
            estimator=self.estimator,
            samples=self.samples,
            gamma=self.gamma,
            lam=self.lam if self.method == "ppo" else None,
            aggregation=self.aggregation,
        )


def exact_policy(values: dict[str, Any], where: str, inside: str) -> ExactPolicy:
    """Validate a row. Raises `UserError` for an option that the method does not read."""
    options = [name for name in ExactPolicy.model_fields if name != "method"]
    for key in values:
        if key not in ExactPolicy.model_fields:
            known = ", ".join(options)
            raise UserError(f"{where}: {inside}.{key}: {values['method']} does not read {key}; its options are {known}")
    return ExactPolicy.parse(values, where, inside)
