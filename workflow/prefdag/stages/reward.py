"""The reward model: train scalar heads on the SFT policy from comparisons, or take one that was fetched."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.config.sections.reward import Reward
from prefdag.data.halves import half_of
from prefdag.data.token_store import Store
from prefdag.errors import UserError
from prefdag.losses.reward_model import bradley_terry, each, explained_by_length, gaps, pair_sum, plackett_luce
from prefdag.models.loading import add_adapter, load_scorer, save, set_up
from prefdag.models.packing import Segments
from prefdag.models.route import route_facts, route_of
from prefdag.provenance.links import link_or_copy
from prefdag.rewards.adoption import POLICY, SOURCE, adopt, prepare_of
from prefdag.rewards.evaluation import evaluation, score_all, write_evaluation, write_held_out
from prefdag.rewards.model import (
    SCORING,
    RewardModel,
    Scoring,
    head_of_scorer,
    head_rewards,
    initial_heads,
    lengths_of,
    load_reward_model,
    member_folder,
    reward_of,
    save_untrained,
    zero_mean,
)
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.training.checkpoint import Checkpoint
from prefdag.training.loop import Losses, Task, total_steps, train
from prefdag.training.records import Step, record_steps

PROVED = 4  # held-out comparisons on which a fetched model's route is compared with single rows
CENTRING = {"pair_sum": pair_sum, "each": each}


class Job(Section):
    reward: Reward


def run(
    job: Job, workspace: Workspace, *, policy: Path, comparisons: Path, source: Path | None = None
) -> dict[str, Any]:
    """Train a reward model, or check and measure a fetched one.

    Args:
        job: the config.
        workspace: where to write, and the journal.
        policy: manifest of the SFT policy.
        comparisons: manifest of the comparisons' token stores.
        source: manifest of the fetched reward model, if none is trained.

    Returns:
        Accuracy, mean and deviation on the held-out comparisons, before and after training and of each head.

    Raises:
        UserError: if the comparisons lack what an option needs.
    """
    if source is not None:
        return _fetched(job.reward, workspace, policy, comparisons, source)
    workspace.log_model_input("policy", "sft")
    return train_reward_model(job.reward, workspace, policy, open_stores(workspace, comparisons), title="reward")


def open_stores(workspace: Workspace, comparisons: Path) -> dict[str, Store]:
    """Journal and open the comparisons that a reward model is trained and evaluated on."""
    workspace.log_dataset("comparisons", "train", "training")
    workspace.log_dataset("comparisons", "test", "evaluation")
    return {split: Store.open(comparisons.parent / split) for split in ("train", "validation", "test")}


def train_reward_model(
    settings: Reward,
    workspace: Workspace,
    policy: Path,
    stores: dict[str, Store],
    *,
    title: str,
    start: Path | None = None,
) -> dict[str, Any]:
    """Train a reward model on the store `train`, evaluate it on `test`, and write its weights and tables.

    Args:
        settings: the loss, the training and the ensemble.
        workspace: where to write, and the journal.
        policy: manifest of the SFT policy.
        stores: the comparisons by split.
        title: names the model in the journal.
        start: manifest of the reward model to start from; the SFT policy with new heads without it.

    Returns:
        Accuracy, mean and deviation on the held-out comparisons, before and after training and of each head.

    Raises:
        UserError: if the comparisons lack what an option needs, or the reward model to start from has other heads.
    """
    device = set_up(settings.threads, settings.precision)
    _check(settings, stores)
    store, held_out = half_of(stores["train"], settings.half), stores["test"]
    scoring = Scoring(
        seeds=settings.trainings, length_normalisation=settings.length_normalisation, combine=settings.combine
    )
    folder, budget = policy.parent / "model", settings.tokens_per_batch
    untrained = _with_heads(folder, settings, settings.trainings, device)
    save_untrained(untrained, workspace.output)
    first = RewardModel((untrained,), scoring) if start is None else load_reward_model(start.parent, device)
    before = score_all(first, held_out, budget, device)
    del untrained, first
    members = _members(folder, start, settings, device)
    steps = trainings(members, store, settings, scoring, workspace.resume)
    total = len(members) * total_steps(store, settings)
    record_steps(steps, total, workspace.journal, workspace.output / "curves.csv", "reward")
    model = RewardModel(tuple(member.eval() for member in members), scoring)
    if settings.normalise != "none":
        scoring = zero_mean(score_all(model.values, stores[settings.normalise], budget, device), scoring)
    per_head = score_all(model.values, held_out, budget, device)
    after = reward_of(torch.from_numpy(per_head), scoring).numpy()
    for place, member in enumerate(members):
        save(member, folder, member_folder(workspace.output, place, scoring.seeds))
    (workspace.output / SCORING).write_text(scoring.canonical() + "\n")
    write_held_out(workspace.output / "held_out.csv", held_out, {"before": before, "after": after})
    workspace.log_model_output(title, parents=["policy" if start is None else "start"])
    prompts = np.asarray(held_out.prompts)
    facts = {"before": evaluation(before, prompts), "after": evaluation(after, prompts)}
    if per_head.shape[-1] > 1:
        names = _head_names(settings)
        facts |= {name: evaluation(per_head[..., head], prompts) for head, name in enumerate(names)}
    write_evaluation(workspace.output / "evaluation.json", facts)
    workspace.results({f"{name}_{when}": facts[when][name] for when in ("before", "after") for name in facts[when]})
    workspace.journal.artifact(workspace.output / "evaluation.json", "evaluation.json")
    return {**facts, **route_facts(members[0])}


def _members(folder: Path, start: Path | None, settings: Reward, device: torch.device) -> list[PreTrainedModel]:
    """Return the models to train, one for each seed: SFT with new heads, or those of the reward model at `start`."""
    if start is None:
        members = [_with_heads(folder, settings, (seed,), device) for seed in settings.trainings]
    else:
        members = _members_of(start.parent, settings, device)
    for place, seed in enumerate(settings.trainings):
        began = folder if start is None else member_folder(start.parent, place, settings.trainings)
        add_adapter(members[place], settings.adapter, seed, began)
    return members


def _members_of(folder: Path, settings: Reward, device: torch.device) -> list[PreTrainedModel]:
    """Load the members of a trained reward model. Raises `UserError` if they are not those of the settings."""
    model = load_reward_model(folder, device)
    heads = sum(len(head_of_scorer(member).weight) for member in model.members)
    if model.scoring.seeds != settings.trainings or heads != settings.heads * len(settings.trainings):
        raise UserError(
            f"{folder}: a reward model of {heads} heads and seeds {list(model.scoring.seeds)}; the section `reward` "
            f"states {settings.heads} for each of the seeds {list(settings.trainings)}; rerun `reward`"
        )
    return list(model.members)


def _fetched(settings: Reward, workspace: Workspace, policy: Path, comparisons: Path, source: Path) -> dict[str, Any]:
    """Prove a fetched reward model's route, and measure it on the held-out comparisons."""
    assert settings.source is not None
    device = set_up(settings.threads)
    workspace.log_model_input("source", "fetched reward")
    workspace.log_dataset("comparisons", "test", "evaluation")
    store = Store.open(comparisons.parent / "test")
    prepare = prepare_of(comparisons, policy.parent / "model")
    rows = [store[index] for index in range(min(PROVED, len(store)))]
    model, adopted = adopt(source.parent / "model", settings.source, policy.parent / "model", prepare, rows, device)
    for name in ("train", "validation"):  # a row that is too long ends the suite before it trains
        split = Store.open(comparisons.parent / name)
        model.translated(split)
    values = score_all(model, store, settings.tokens_per_batch, device)
    (workspace.output / "model").mkdir()
    for path in (source.parent / "model").iterdir():
        link_or_copy(path, workspace.output / "model" / path.name)
    model.policy.save_pretrained(workspace.output / POLICY)
    (workspace.output / SOURCE).write_text(adopted.canonical() + "\n", encoding="utf-8")
    write_held_out(workspace.output / "held_out.csv", store, {"after": values})
    workspace.log_model_output("reward", parents=["source"])
    facts = {"after": evaluation(values, np.asarray(store.prompts))}
    write_evaluation(workspace.output / "evaluation.json", facts)
    workspace.results({f"{name}_after": value for name, value in facts["after"].items()})
    workspace.journal.artifact(workspace.output / "evaluation.json", "evaluation.json")
    route = "one padded row for each response" if adopted.padded or not model.is_packed else str(route_of(model.model))
    about = {"template": adopted.template, "route": route, "label": model.label}
    print(f"reward: {settings.source.source} reads dialogues by `{adopted.template}`, computed {route}", flush=True)
    return {**facts, "source": about}


def _check(settings: Reward, stores: dict[str, Store]) -> None:
    """Raise `UserError` if the comparisons lack what an option needs."""
    train_store = stores["train"]
    if train_store.num_responses < 2:
        raise UserError(f"{train_store.folder}: one response per prompt; a reward model needs 2 or more")
    if settings.margin == "scores" and train_store.scores is None:
        raise UserError(f"reward.margin: {train_store.folder} has no scores; use data with scores, or margin: none")
    if settings.normalise != "none" and not len(stores[settings.normalise]):
        raise UserError(
            f"reward.normalise: the split {settings.normalise} is empty; use the other split or hold rows out"
        )


def _with_heads(folder: Path, settings: Reward, seeds: Sequence[int], device: torch.device) -> PreTrainedModel:
    """Load the policy with untrained heads: `settings.heads` for each seed."""
    model = load_scorer(folder, device, new_heads=settings.heads * len(seeds))
    initial_heads(model, settings.head_std, seeds)
    return model


def _head_names(settings: Reward) -> list[str]:
    """Return a name of each head of an ensemble: its seed, its number, or both."""
    seeds = [f"seed {seed}" for seed in settings.trainings] if len(settings.trainings) > 1 else [""]
    heads = [f"head {number + 1}" for number in range(settings.heads)] if settings.heads > 1 else [""]
    return [f"{seed} {head}".strip() for seed in seeds for head in heads]


def trainings(
    members: Sequence[PreTrainedModel], store: Store, settings: Reward, scoring: Scoring, resume: Path
) -> Iterator[Step]:
    """Train the members one after the other, numbering their steps consecutively; each seed has its own order."""
    done = 0
    for model, seed in zip(members, settings.trainings, strict=True):
        task = Task(lambda ids, segments, model=model: losses(model, store, settings, scoring, ids, segments), len)  # type: ignore
        seeded = settings.model_copy(update={"seed": seed})
        for step in train(model.train(), store, seeded, task, Checkpoint(resume / f"seed{seed}")):
            yield replace(step, number=done + step.number)
        done += total_steps(store, settings)


def losses(
    model: PreTrainedModel,
    store: Store,
    settings: Reward,
    scoring: Scoring,
    ids: Sequence[int],
    segments: Segments,
) -> Losses:
    """Return each comparison's loss, averaged over the model's heads, [B], with accuracy and margin of the reward.

    Args:
        model: a member of the ensemble.
        store: the comparisons.
        settings: the loss and its options.
        scoring: how heads are combined and lengths normalised.
        ids: the comparisons of the micro-batch.
        segments: the same, packed.
    """
    values = head_rewards(model, segments, scoring)
    per_head = values.movedim(-1, 1)
    margin = None
    if settings.margin == "scores":
        assert store.scores is not None
        margin = gaps(torch.from_numpy(store.scores[np.asarray(ids)]).to(values))[:, None]
    loss = reward_loss(settings, per_head, lengths_of(segments)[:, None], margin)
    gap = gaps(reward_of(values.detach(), scoring))
    accuracy = ((gap > 0) + 0.5 * (gap == 0)).mean(-1)
    return loss.mean(-1), {"accuracy": accuracy, "margin": gap.mean(-1)}


def reward_loss(settings: Reward, values: Tensor, lengths: Tensor, margin: Tensor | None) -> Tensor:
    """Return the loss chosen in `settings`.

    Args:
        settings: the loss and its options.
        values: rewards, [..., K].
        lengths: tokens of each response, [..., K].
        margin: gaps of scores that the rewards should exceed, [..., pairs].

    Returns:
        [...].
    """
    compared = explained_by_length(values, lengths, settings.length_penalty) if settings.length_penalty else values
    if settings.loss == "plackett_luce":
        loss = plackett_luce(compared)
    else:
        loss = bradley_terry(compared, margin=margin, label_smoothing=settings.label_smoothing)
    if settings.centring_coefficient is not None:
        loss = loss + settings.centring_coefficient * CENTRING[settings.centring](values)
    return loss
