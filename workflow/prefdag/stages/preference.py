"""Preference training: align the SFT policy with one preference loss."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, SerializeAsAny, field_validator
from transformers import PreTrainedModel

from prefdag.config.objectives import Objective, objective
from prefdag.config.sections.preference import Preference
from prefdag.data.token_store import Store
from prefdag.data.views import Mismatched, Unpaired, objective_view
from prefdag.distributed.ranks import rank
from prefdag.errors import UserError
from prefdag.models.loading import add_adapter, load_policy, save, set_up
from prefdag.models.route import route_facts, route_of
from prefdag.provenance.manifest import read_manifest
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.training.checkpoint import Checkpoint, WeightsKeeper
from prefdag.training.loop import total_steps, train
from prefdag.training.mismatched import MismatchedRatios
from prefdag.training.preference_metrics import Displacement
from prefdag.training.preference_task import PreferenceTask
from prefdag.training.records import record_steps, write_rows
from prefdag.training.reference_cache import ReferenceCache, cache_key, check_key, tolerance, write_cache


class Job(Section):
    preference: Preference
    objective: SerializeAsAny[Objective]
    labels: Literal["soft"] | None = Field(
        None, description="`soft`: each pair counts in both orders, weighted by s(difference of its scores)"
    )

    @field_validator("objective", mode="before")
    @classmethod
    def _of_the_registry(cls, values: Any) -> Any:
        return objective(values, "preference --config", "objective") if isinstance(values, dict) else values


def run(
    job: Job,
    workspace: Workspace,
    *,
    policy: Path,
    comparisons: Path,
    reference: Path | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """Align the SFT policy, or that of the round before, with one preference loss.

    Args:
        job: the config.
        workspace: where to write, and the journal.
        policy: manifest of the policy that the training starts from, which is its reference.
        comparisons: manifest of the comparisons' token stores.
        reference: manifest of the reference cache, if the loss reads it.
        start: manifest of the policy to start from, if `policy` is the reference alone.

    Returns:
        Loss and metrics on the validation split, if it has comparisons.

    Raises:
        UserError: if the reference cache does not fit.
    """
    settings = job.preference
    device = set_up(settings.threads, settings.precision)
    began = start or policy
    for argument, path in {"policy": policy, "start": start}.items():
        if path is not None:
            workspace.log_model_input(argument, path.parent.name)
    workspace.log_dataset("comparisons", "train", "training")
    stores = {split: Store.open(comparisons.parent / split) for split in ("train", "validation")}
    views = _views(job, stores)
    model = load_policy(began.parent / "model", device)
    base = add_adapter(model, settings.adapter, settings.seed, began.parent / "model")
    if start is None and _is_rounded(job) and "reference" in job.objective.reads:
        caches = {name: _rounded_cache(base, job, stores[name], views[name], workspace.resume / name) for name in views}
    else:
        caches = _caches(job, policy, comparisons, reference, base if start is None else None, views)
    checkpoints = WeightsKeeper(workspace.resume / "checkpoints", settings.kept_steps, model, began.parent / "model")
    # `train` loads a resumed state into the model: measure everything that is relative to the start before that.
    live = None
    if "divergence" in job.objective.reads:
        live = base if base is not model and start is None else _frozen(policy, device)
    tasks = {split: _task(job, model, view, caches.get(split), live, start and policy) for split, view in views.items()}
    held_out_pairs = stores["validation"] if stores["validation"].num_responses > 1 else ()
    probe = Displacement(model, stores["validation"], settings.tokens_per_batch) if len(held_out_pairs) else None
    task, saved = tasks["train"], Checkpoint(workspace.resume)
    steps = train(model.train(), views["train"], settings, task, saved, probe, checkpoints)
    title, total = workspace.name or job.objective.method, total_steps(views["train"], settings)
    last = record_steps(steps, total, workspace.journal, workspace.output / "curves.csv", title)
    if probe is not None:
        write_rows(probe.rows(), workspace.output / "held_out.csv")
    save(model, began.parent / "model", workspace.output / "model")
    _log_models(workspace, title, checkpoints.publish(workspace.output / "checkpoints"), "start" if start else "policy")
    model.eval()
    held_out = tasks["validation"].evaluate(settings.tokens_per_batch, last.state) if "validation" in tasks else {}
    workspace.results(facts := {f"validation_{name}": value for name, value in held_out.items()})
    return {**facts, **route_facts(model)}


def _views(job: Job, stores: dict[str, Store]) -> dict[str, Store | Unpaired]:
    """Return each split as the loss reads it; without a validation split on which the loss has no value."""
    views = {split: objective_view(store, job.objective) for split, store in stores.items() if len(store)}
    if not _can_be_evaluated(job, views.get("validation")):
        print(f"preference: validation: too few prompts for {job.objective.method}, not evaluated", flush=True)
        del views["validation"]
    return views


def _log_models(workspace: Workspace, title: str, steps: Iterable[int], parent: str) -> None:
    """Journal the weights of the checkpoints and of the last step, and the input that they start from."""
    for step in steps:
        workspace.log_model_output(f"{title}@step{step}", parents=[parent], folder=f"checkpoints/{step}")
    workspace.log_model_output(title, parents=[parent])


def _can_be_evaluated(job: Job, view: Store | Unpaired | None) -> bool:
    """Whether the loss has a value on held-out comparisons: one that reads other prompts' responses needs several."""
    reads_others = view is not None and "mismatched" in job.objective.reads
    return not reads_others or (isinstance(view, Unpaired) and Mismatched(view, job.preference.seed).is_possible)


def _caches(
    job: Job,
    policy: Path,
    comparisons: Path,
    reference: Path | None,
    model: PreTrainedModel | None,
    views: dict[str, Store | Unpaired],
) -> dict[str, ReferenceCache]:
    """Open the reference caches that the loss reads, and check their keys, sizes and values.

    model: the reference, if it is loaded already.
    """
    if "reference" not in job.objective.reads:
        return {}
    if reference is None:
        raise UserError(f"preference --reference: {job.objective.method} reads the reference; pass its manifest")
    manifest = read_manifest(reference)
    model = model or load_policy(policy.parent / "model", set_up(job.preference.threads, job.preference.precision))
    device = next(model.parameters()).device
    check_key(manifest, cache_key(read_manifest(policy), read_manifest(comparisons), device, route_of(model)))
    caches = {split: ReferenceCache(manifest.file(f"{split}.npy"), view) for split, view in views.items()}
    caches["train"].verify(model, views["train"])
    return caches


def _is_rounded(job: Job) -> bool:
    """Whether the frozen weights below an adapter are in half precision or less."""
    return job.preference.adapter is not None and job.preference.adapter.base != "float32"


def _rounded_cache(
    base: PreTrainedModel, job: Job, store: Store, view: Store | Unpaired, folder: Path
) -> ReferenceCache:
    """Return log-probs of the base as it is held here: the suite's cache is of float32 weights.

    Every process computes its own, so that none waits for another.
    """
    path = folder / f"reference-{rank()}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        write_cache(base, store, partial, job.preference.tokens_per_batch)
        partial.replace(path)
    return ReferenceCache(path, view)


def _frozen(policy: Path, device: torch.device) -> PreTrainedModel:
    """Load a frozen copy of the reference policy, for losses that read the reference's whole distribution."""
    return load_policy(policy.parent / "model", device).requires_grad_(False)


def _task(
    job: Job,
    model: PreTrainedModel,
    view: Store | Unpaired,
    cache: ReferenceCache | None,
    live: PreTrainedModel | None,
    away: Path | None,
) -> PreferenceTask:
    """Return the objective on one split.

    The model must be the starting policy. It is the reference unless `away` names the reference's manifest.
    """
    device = next(model.parameters()).device
    mismatched = None
    if "mismatched" in job.objective.reads:
        assert isinstance(view, Unpaired)
        reference = model if away is None else _frozen(away, device)
        mismatched = MismatchedRatios(model, view, job.preference.seed, job.preference.tokens_per_batch, reference)
    start = tolerance(device, _is_rounded(job)) if away is None else None
    return PreferenceTask(
        job.objective, model, view, cache, live, mismatched, job.preference.seed, start, soft=job.labels == "soft"
    )
