"""On-policy training: improve the SFT policy on rewards of its own answers."""

from pathlib import Path
from typing import Any

from pydantic import SerializeAsAny, field_validator

from prefdag.config.online.methods import PolicyMethod, policy_method
from prefdag.config.online.settings import Online
from prefdag.online.job import train_policy
from prefdag.online.rewards import Sources
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section


class Job(Section):
    online: Online
    objective: SerializeAsAny[PolicyMethod]

    @field_validator("objective", mode="before")
    @classmethod
    def _of_the_registry(cls, values: Any) -> Any:
        return policy_method(values, "policy --config", "objective") if isinstance(values, dict) else values


def run(
    job: Job,
    workspace: Workspace,
    *,
    policy: Path,
    prompts: Path,
    reward: Path | None = None,
    classifier: Path | None = None,
    implicit: Path | None = None,
) -> dict[str, Any]:
    """Train the SFT policy on rewards of its own answers.

    Args:
        job: the config.
        workspace: where to write, and the journal.
        policy: manifest of the SFT policy, which is also the reference.
        prompts: manifest of the comparisons whose prompts are answered.
        reward: manifest of the reward model, if the run reads it.
        classifier: manifest of the classifier, if it is the reward.
        implicit: manifest of the run whose implicit reward is optimised.

    Returns:
        Metrics of the last round.
    """
    weights = policy.parent / "model"
    sources = Sources(reward, classifier, implicit)
    return train_policy(job.online, job.objective, workspace, weights, prompts, sources)
