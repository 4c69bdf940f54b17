"""Preference training: SFT policy, comparisons and the reference cache to an aligned policy."""

from pathlib import Path
from typing import Any

import torch
from pydantic import SerializeAsAny, field_validator
from transformers import PreTrainedModel

from prefdag.config.objectives import Objective, objective
from prefdag.config.preference import Preference
from prefdag.data.token_store import Store
from prefdag.data.views import Unpaired, objective_view
from prefdag.errors import UserError
from prefdag.models.loading import load_policy, save, set_up
from prefdag.provenance.manifest import read_manifest
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.training.checkpoint import Checkpoint, WeightsKeeper
from prefdag.training.loop import total_steps, train
from prefdag.training.mismatched import MismatchedRatios
from prefdag.training.preference_metrics import displacement
from prefdag.training.preference_task import PreferenceTask
from prefdag.training.records import record_steps
from prefdag.training.reference_cache import ReferenceCache, cache_key, check_key, tolerance


class Job(Section):
    preference: Preference
    objective: SerializeAsAny[Objective]

    @field_validator("objective", mode="before")
    @classmethod
    def _of_the_registry(cls, values: Any) -> Any:
        return objective(values, "preference --config", "objective") if isinstance(values, dict) else values


def run(
    job: Job, workspace: Workspace, *, policy: Path, comparisons: Path, reference: Path | None = None
) -> dict[str, Any]:
    """Align the SFT policy with one preference loss."""
    settings = job.preference
    device = set_up(settings.threads)
    workspace.log_model_input("policy", "sft")
    workspace.log_dataset("comparisons", "train", "training")
    stores = {split: Store.open(comparisons.parent / split) for split in ("train", "validation")}
    views = {split: objective_view(store, job.objective) for split, store in stores.items() if len(store)}
    model = load_policy(policy.parent / "model", device)
    caches = _caches(job, policy, comparisons, reference, model, views)
    total = total_steps(views["train"], settings)
    _check_checkpoints(settings, total)
    kept = WeightsKeeper(workspace.resume / "checkpoints", settings.kept_steps, model, policy.parent / "model")
    # A resumed training has moved on: whatever is measured against the start is measured before its state is loaded.
    live = _frozen(policy, device) if "divergence" in job.objective.reads else None
    tasks = {split: _alignment(job, model, view, caches.get(split), live) for split, view in views.items()}
    probe = displacement(model, stores["validation"], settings.tokens_per_batch) if "validation" in views else None
    steps = train(model.train(), views["train"], settings, tasks["train"], Checkpoint(workspace.resume), probe, kept)
    title = workspace.name or job.objective.method
    last = record_steps(steps, total, workspace.journal, workspace.output / "curves.csv", title)
    save(model, policy.parent / "model", workspace.output / "model")
    for step in kept.published(workspace.output / "checkpoints"):
        workspace.log_model_output(f"{title}@step{step}", parents=["policy"], folder=f"checkpoints/{step}")
    workspace.log_model_output(title, parents=["policy"])
    model.eval()
    held_out = tasks["validation"].evaluate(settings.tokens_per_batch, last.state) if "validation" in tasks else {}
    facts = {f"validation_{name}": value for name, value in held_out.items()}
    workspace.results(facts)
    return facts


def _check_checkpoints(settings: Preference, total: int) -> None:
    if settings.checkpoints and total != settings.max_steps:
        raise UserError(
            f"preference.max_steps: checkpoints are spaced over these {settings.max_steps} steps, and the comparisons "
            f"come to {total} in epochs {settings.epochs:g}; state max_steps: {total}, or more epochs"
        )


def _caches(
    job: Job,
    policy: Path,
    comparisons: Path,
    reference: Path | None,
    model: PreTrainedModel,
    views: dict[str, Store | Unpaired],
) -> dict[str, ReferenceCache]:
    """The reference caches that the loss reads, checked: the right key, the right sizes, the right values."""
    if "reference" not in job.objective.reads:
        return {}
    if reference is None:
        raise UserError(f"preference --reference: {job.objective.method} reads the reference; give its manifest")
    manifest = read_manifest(reference)
    device = next(model.parameters()).device
    check_key(manifest, cache_key(read_manifest(policy), read_manifest(comparisons), device))
    caches = {split: ReferenceCache(manifest, split, view) for split, view in views.items()}
    caches["train"].verify(model, views["train"])
    return caches


def _frozen(policy: Path, device: torch.device) -> PreTrainedModel:
    """A second copy of the policy as it starts, for losses that read the reference's whole distribution."""
    return load_policy(policy.parent / "model", device).requires_grad_(False)


def _alignment(
    job: Job,
    model: PreTrainedModel,
    view: Store | Unpaired,
    cache: ReferenceCache | None,
    live: PreTrainedModel | None,
) -> PreferenceTask:
    """The objective on one split. The model must be the policy as it starts."""
    mismatched = None
    if "mismatched" in job.objective.reads:
        assert isinstance(view, Unpaired)
        mismatched = MismatchedRatios(model, view, job.preference.seed, job.preference.tokens_per_batch)
    start = tolerance(next(model.parameters()).device)
    return PreferenceTask(job.objective, model, view, cache, live, mismatched, job.preference.seed, start)
