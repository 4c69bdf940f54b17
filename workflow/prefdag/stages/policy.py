"""On-policy training: improve the SFT policy on rewards of its own answers."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import SerializeAsAny, field_validator

from prefdag.config.online.methods import PolicyMethod, TokenMethod, policy_method, reads_values
from prefdag.config.online.settings import Online
from prefdag.config.prepare import Prepare
from prefdag.data.token_store import Store
from prefdag.data.tokenization import load_tokenizer, stop_token
from prefdag.models.loading import load_policy, save, set_up
from prefdag.online.critic import load_critic
from prefdag.online.loop import OnlineTraining
from prefdag.online.rewards import Sources, load_scorer
from prefdag.online.rollouts import Rollouts
from prefdag.online.round import Models
from prefdag.provenance.manifest import read_manifest
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.training.checkpoint import Checkpoint, WeightsKeeper
from prefdag.training.records import record_steps


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
    settings, method = job.online, job.objective
    device = set_up(settings.threads)
    workspace.log_model_input("policy", "sft")
    workspace.log_dataset("prompts", "train", "training")
    weights, questions = policy.parent / "model", prompts_of(prompts.parent / "train")
    tokenizer = load_tokenizer(weights)
    written = read_manifest(prompts).content["config"]["prepare"]
    end = stop_token(tokenizer, Prepare.parse(written, str(prompts), "config.prepare"))
    model, reference = load_policy(weights, device), load_policy(weights, device).requires_grad_(False)
    critic = None
    if isinstance(method, TokenMethod) and reads_values(method):
        critic = load_critic(method, model, weights, reward, settings.seed, device)
    scorer = load_scorer(settings, Sources(reward, classifier, implicit), tokenizer, reference, device)
    checkpoints = WeightsKeeper(workspace.resume / "checkpoints", settings.kept_steps, model, weights)

    def journal_seconds(number: int, rollouts: Rollouts, seconds: dict[str, float]) -> None:
        workspace.journal.metrics(number, {f"seconds_{phase}": value for phase, value in seconds.items()})

    training = OnlineTraining(
        Models(model.train(), reference if settings.reads_reference else None, critic),
        method, settings, questions, scorer, end, Checkpoint(workspace.resume), checkpoints, journal_seconds,
    )  # fmt: skip
    title = workspace.name or method.method
    last = record_steps(
        training.rounds(), settings.max_steps, workspace.journal, workspace.output / "curves.csv", title
    )
    save(model, weights, workspace.output / "model")
    for step in checkpoints.publish(workspace.output / "checkpoints"):
        workspace.log_model_output(f"{title}@step{step}", parents=["policy"], folder=f"checkpoints/{step}")
    workspace.log_model_output(title, parents=["policy"])
    facts: dict[str, Any] = {
        name: last.metrics[name] for name in ("score", "kl", "length", "ended") if name in last.metrics
    }
    workspace.results({f"final_{name}": value for name, value in facts.items()})
    return facts


def prompts_of(folder: Path) -> list[NDArray[np.int32]]:
    """Return the distinct prompts of a token store, as token ids."""
    store = Store.open(folder)
    _, first = np.unique(store.prompts, return_index=True)
    return [np.array(store[int(index)].prompt) for index in first]
