"""Online preference training: align the SFT policy by a pair loss on labelled pairs of its own answers."""

from pathlib import Path
from typing import Any

from pydantic import SerializeAsAny, field_validator
from torch import Tensor

from prefdag.config.objectives import Objective, objective
from prefdag.config.online.settings import Online
from prefdag.config.sections.judge import LLM
from prefdag.losses.registry import loss_of
from prefdag.models.logprobs import LogProbs
from prefdag.online.job import train_policy
from prefdag.online.judged import judge_comparison
from prefdag.online.rewards import Sources
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section


class Job(Section):
    online: Online
    objective: SerializeAsAny[Objective]
    judge: LLM | None = None

    @field_validator("objective", mode="before")
    @classmethod
    def _of_the_registry(cls, values: Any) -> Any:
        return objective(values, "online --config", "objective") if isinstance(values, dict) else values


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
    """Align the SFT policy by a pair loss on labelled pairs of its own answers.

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
    compare = judge_comparison(job.judge, job.online, workspace) if job.judge else None
    sources = Sources(reward, classifier, implicit, compare)
    loss = loss_of(job.objective)
    reads = "reference" in job.objective.reads

    def pair_loss(policy: LogProbs, reference: LogProbs) -> Tensor:
        values: Tensor = loss(policy, reference=reference) if reads else loss(policy)
        return values

    return train_policy(job.online, job.objective, workspace, weights, prompts, sources, pair_loss)
