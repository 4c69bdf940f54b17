"""The body of the stages `policy` and `online`: from manifests to a trained policy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from prefdag.config.objectives import Objective
from prefdag.config.online.methods import TokenMethod, reads_values
from prefdag.config.online.settings import Online
from prefdag.config.prepare import Prepare
from prefdag.data.settled import settle
from prefdag.data.token_store import Store
from prefdag.data.tokenization import load_tokenizer, stop_token
from prefdag.distributed.ranks import is_first
from prefdag.losses.soft_labels import PairLoss
from prefdag.models.loading import add_adapter, load_policy, save, set_up
from prefdag.models.route import route_facts
from prefdag.online.critic import load_critic
from prefdag.online.loop import OnlineTraining
from prefdag.online.report import doubts_of, missed_target, write_answers
from prefdag.online.rewards import Sources, load_scorer
from prefdag.online.rollouts import Rollouts
from prefdag.online.round import Models
from prefdag.online.sampler import VllmSampler
from prefdag.provenance.manifest import read_manifest
from prefdag.runtime.stage import Workspace
from prefdag.training.checkpoint import Checkpoint, WeightsKeeper
from prefdag.training.records import record_steps


def train_policy(
    settings: Online,
    method: Objective,
    workspace: Workspace,
    weights: Path,
    prompts: Path,
    sources: Sources,
    pair_loss: PairLoss | None = None,
) -> dict[str, Any]:
    """Train a policy on its own answers, and write its weights, curves and answers.

    Args:
        settings, method: of the row.
        workspace: where to write, and the journal.
        weights: folder of the SFT policy, which is also the reference.
        prompts: manifest of the comparisons whose prompts are answered.
        sources: manifests of what scores.
        pair_loss: of a method that is a loss of pairs.

    Returns:
        Metrics of the last round.
    """
    device = set_up(settings.threads, settings.precision)
    workspace.log_model_input("policy", "sft")
    workspace.log_dataset("prompts", "train", "training")
    questions = prompts_of(prompts.parent / "train")
    tokenizer = load_tokenizer(weights)
    written = read_manifest(prompts).content["config"]["prepare"]
    end = stop_token(tokenizer, settle(Prepare.parse(written, str(prompts), "config.prepare"), tokenizer))
    models, initial = models_of(settings, method, weights, sources, device)
    scorer = load_scorer(settings, sources, tokenizer, initial, device)
    checkpoints = WeightsKeeper(workspace.resume / "checkpoints", settings.kept_steps, models.policy, weights)

    def journal_seconds(number: int, rollouts: Rollouts, seconds: dict[str, float]) -> None:
        workspace.journal.metrics(number, {f"seconds_{phase}": value for phase, value in seconds.items()})

    sampler = None
    if settings.sampler == "vllm":
        sampler = VllmSampler(models.policy, weights, workspace.resume / "sampler", settings, end)
    training = OnlineTraining(
        models, method, settings, questions, scorer, end, Checkpoint(workspace.resume), checkpoints, journal_seconds,
        pair_loss, sampler,
    )  # fmt: skip
    title = workspace.name or method.method
    last = record_steps(
        training.rounds(), settings.max_steps, workspace.journal, workspace.output / "curves.csv", title
    )
    write_answers(workspace.output / "samples.csv", training.answers, questions, tokenizer)
    workspace.journal.artifact(workspace.output / "samples.csv", "samples.csv")
    save(models.policy, weights, workspace.output / "model")
    for step in checkpoints.publish(workspace.output / "checkpoints"):
        workspace.log_model_output(f"{title}@step{step}", parents=["policy"], folder=f"checkpoints/{step}")
    workspace.log_model_output(title, parents=["policy"])
    rounds = [record["metrics"] for record in training.history]
    workspace.results({f"final_{name}": value for name, value in _results(last.metrics).items()})
    return {**_results(last.metrics), **_warnings(title, rounds, settings), **route_facts(models.policy)}


def _results(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of the last round that a manifest states."""
    return {name: metrics[name] for name in ("score", "kl", "length", "ended") if name in metrics}


def _warnings(title: str, rounds: list[dict[str, float]], settings: Online) -> dict[str, Any]:
    """Return, and print, what a manifest states of a target that was missed and of other doubts."""
    facts: dict[str, Any] = {}
    if missed := missed_target(rounds, settings.kl):
        facts["missed_target"] = missed
    if doubts := doubts_of(rounds, settings):
        facts["doubts"] = doubts
        if is_first():
            print("\n".join(f"{title}: {doubt}" for doubt in doubts), flush=True)
    return facts


def models_of(
    settings: Online, method: Objective, weights: Path, sources: Sources, device: torch.device
) -> tuple[Models, PreTrainedModel]:
    """Load what a training reads and changes. Raises `UserError` for a value head that cannot be made.

    Returns:
        Policy, reference and value head; and the SFT policy, frozen, also where the objective has no reference.
    """
    model = load_policy(weights, device)
    initial = add_adapter(model, settings.adapter, settings.seed, weights)
    if initial is model:
        initial = load_policy(weights, device).requires_grad_(False)
    critic = None
    if isinstance(method, TokenMethod) and reads_values(method):
        critic = load_critic(method, model, weights, sources.reward, settings.seed, device)
    return Models(model.train(), initial if settings.reads_reference else None, critic), initial


def prompts_of(folder: Path) -> list[NDArray[np.int32]]:
    """Return the distinct prompts of a token store, as token ids."""
    store = Store.open(folder)
    _, first = np.unique(store.prompts, return_index=True)
    return [np.array(store[int(index)].prompt) for index in first]
