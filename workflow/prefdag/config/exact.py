"""A world small enough to enumerate, in which losses are minimised exactly."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from prefdag.config.exact_policy import ExactPolicy, exact_policy
from prefdag.config.objectives import Objective, objective
from prefdag.config.optimum import POLICY_GRADIENT, Optimum, preference_optimum
from prefdag.schema import Compute, Section


class Exact(Compute):
    """Minimise losses to convergence over all responses, and compare them with the exact optimum."""

    prompts: int = Field(3, ge=2, le=8, description="2 to 8 prompts")
    words: int = Field(2, ge=1, le=4, description="1 to 4 words, not counting the end token")
    length: int = Field(3, ge=1, le=4, description="1 to 4 tokens in the longest response")
    ranked: int = Field(3, ge=2, le=4, description="2 to 4 responses in a ranking, for losses of many responses")


LEFT_OUT = {
    "aot": "it couples the order statistics of one optimizer step, which a comparison alone does not have",
    "aot_unpaired": "it couples the order statistics of one optimizer step, which a comparison alone does not have",
    "beta_dpo": "it draws the pairs of a step at random and follows their running mean",
    "log_ratio": "it is linear in D, so it falls without bound",
    "odpo": "its labels must agree with its scores, so every pair can be separated and it falls without bound",
}
MEANS = ("kto", "bco")  # what couples the comparisons of a step is a mean, which a population has too
AVAILABLE = {"reference", "scores", "labels", "mismatched", "collision", "divergence"}


class Sweep(Section):
    """One job of an exact suite: a row of `runs`, or all the settings of an entry of `grid`."""

    name: str
    flips: float = Field(0.0, ge=0, lt=0.5, description="the fraction of labels that are flipped")
    online: Literal["bradley_terry", "hard"] | None = Field(
        None, description="pairs are samples of the policy itself, and these are their labels"
    )
    rounds: int = Field(1, ge=1, description="of `online`: the reference of a round is the policy before it")
    objectives: tuple[SerializeAsAny[Objective], ...] = Field(min_length=1)

    @field_validator("objectives", mode="before")
    @classmethod
    def _of_the_registry(cls, values: Any) -> Any:
        return [entry_of_row(value, "exact --config", "run") if isinstance(value, dict) else value for value in values]

    @model_validator(mode="after")
    def _have_populations(self) -> "Sweep":
        if self.rounds > 1 and not self.online:
            raise ValueError("rounds: only `online` rows have rounds; leave it out")
        for loss in self.objectives:
            if self.online and (loss.responses != "two" or "state" in loss.reads):
                raise ValueError(f"online: it applies to losses of pairs, and {loss.method} is none; leave it out")
            if self.flips and (self.online or isinstance(loss, ExactPolicy)):
                raise ValueError("flips: it applies to pairs that the reference draws; leave it out")
            if why := without_population(loss):
                raise ValueError(f"{loss.method} has no population loss to minimise: {why}; leave the row out")
            if self.flips and loss.responses == "many":
                raise ValueError(f"flips: it applies to pairs, and {loss.method} reads rankings; leave it out")
        return self

    def user_files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(path for loss in self.objectives for path in loss.user_files()))


def entry_of_row(values: dict[str, Any], where: str, inside: str) -> Objective:
    """Validate the method of a row: a policy gradient or a loss of the registry."""
    return (exact_policy if values.get("method") in POLICY_GRADIENT else objective)(values, where, inside)


def optimum_of(row: Sweep, loss: Objective) -> Optimum:
    """Return where theory says that a row's method goes; empty for losses that the suite itself measures."""
    if isinstance(loss, ExactPolicy):
        return loss.optimum
    if row.online:
        return preference_optimum(loss.method, labels=row.online, rounds=row.rounds, reference="round")
    return Optimum("")


def without_population(loss: Objective) -> str | None:
    """Return why a loss cannot be minimised over a population; None if it can."""
    if loss.method in LEFT_OUT:
        return LEFT_OUT[loss.method]
    if loss.scope == "step" and loss.method not in MEANS:
        per_token = getattr(loss, "nll", None) == "per_token"
        return "nll: per_token averages over one step's tokens" if per_token else "it couples the comparisons of a step"
    missing = loss.reads - AVAILABLE - ({"state"} if loss.method in MEANS else set())
    return f"it reads {', '.join(sorted(missing))}, which belongs to optimizer steps" if missing else None
