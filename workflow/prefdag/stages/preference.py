"""Preference training: SFT policy, comparisons and the reference cache to an aligned policy."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import SerializeAsAny, field_validator
from transformers import PreTrainedModel

from prefdag.checkpoint import Checkpoint
from prefdag.config.objectives import Objective, objective
from prefdag.config.preference import Preference
from prefdag.config.section import Section
from prefdag.curves import record
from prefdag.errors import UserError
from prefdag.logprobs import LogProbs, logprobs, margin
from prefdag.loop import Losses, Task, total_steps, train
from prefdag.losses import loss_of
from prefdag.manifest import read_manifest
from prefdag.models import autocast, load_policy, save, set_up
from prefdag.reference import ReferenceCache, cache_key, check_key, tolerance
from prefdag.segments import Segments, packed
from prefdag.stage import Workspace
from prefdag.store import Store

PROBED = 48  # held-out comparisons that are watched during training
Reference = Callable[[Sequence[int], Segments], LogProbs]


class Job(Section):
    preference: Preference
    objective: SerializeAsAny[Objective]

    @field_validator("objective", mode="before")
    @classmethod
    def _of_the_registry(cls, values: Any) -> Any:
        return objective(values, "preference --config", "objective") if isinstance(values, dict) else values


def run(job: Job, here: Workspace, *, policy: Path, comparisons: Path, reference: Path | None = None) -> dict[str, Any]:
    """Align the SFT policy with one preference loss."""
    settings = job.preference
    device = set_up(settings.threads)
    here.reads_model("policy", "sft")
    here.reads_dataset("comparisons", "train", "training")
    store, held_out = (Store.open(comparisons.parent / split) for split in ("train", "validation"))
    model = load_policy(policy.parent / "model", device)
    caches = _caches(job, policy, comparisons, reference, model, {"train": store, "validation": held_out})
    task = preference_task(job.objective, model, caches.get("train"))
    checkpoint = Checkpoint(here.resume)
    if "train" in caches and not checkpoint.path.exists():
        task = first_step_checked(task, tolerance(device))
    probe = displacement(model, held_out, settings.tokens_per_batch) if len(held_out) else None
    steps = train(model.train(), store, settings, task, checkpoint, probe)
    title = here.name or job.objective.method
    record(steps, total_steps(store, settings), here.journal, here.output / "curves.csv", title)
    save(model, policy.parent / "model", here.output / "model")
    here.makes_model(title, parents=["policy"])
    held = preference_task(job.objective, model.eval(), caches.get("validation"))
    facts = held_out_means(held, held_out, settings.tokens_per_batch, device)
    here.results(facts)
    return facts


def _caches(
    job: Job,
    policy: Path,
    comparisons: Path,
    reference: Path | None,
    model: PreTrainedModel,
    stores: dict[str, Store],
) -> dict[str, ReferenceCache]:
    """The reference caches that the loss reads, checked: the right key, the right sizes, the right values."""
    if "reference" not in job.objective.reads:
        return {}
    if reference is None:
        raise UserError(f"preference --reference: {job.objective.method} reads the reference; give its manifest")
    manifest = read_manifest(reference)
    device = next(model.parameters()).device
    check_key(manifest, cache_key(read_manifest(policy), read_manifest(comparisons), device))
    caches = {split: ReferenceCache(manifest, split, store) for split, store in stores.items() if len(store)}
    caches["train"].verify(model, stores["train"])
    return caches


def preference_task(loss: Objective, model: PreTrainedModel, reference: Reference | None) -> Task:
    """The loss of one objective, with what people watch beside it.

    Metrics per comparison: summed log-probs of chosen and rejected, and where the loss reads a reference their
    log-ratios, the margin and whether it is positive; without one, margin and accuracy are of average log-probs.
    """
    compute = loss_of(loss)

    def losses(ids: Sequence[int], segments: Segments) -> Losses:
        policy = logprobs(model, segments)
        cached = reference(ids, segments) if reference is not None else None
        with torch.autocast(policy.tokens.device.type, enabled=False):
            values = compute(policy) if cached is None else compute(policy, reference=cached)
            return values, _watched(policy, cached)

    return Task(losses, len)


@torch.no_grad()
def _watched(policy: LogProbs, reference: LogProbs | None) -> dict[str, torch.Tensor]:
    total = policy.total
    metrics = {"chosen_logprob": total[:, 0], "rejected_logprob": total[:, 1]}
    if reference is not None:
        ratio = (policy - reference).total
        metrics |= {"chosen_logratio": ratio[:, 0], "rejected_logratio": ratio[:, 1]}
    gap = margin(ratio if reference is not None else policy.mean)
    return {**metrics, "margin": gap, "accuracy": (gap > 0) + 0.5 * (gap == 0)}


def first_step_checked(task: Task, allowed: float) -> Task:
    """Check on the very first micro-batch that the policy is the reference: every log-ratio 0 within `allowed` a token.

    Then DPO's loss is ln 2 and IPO's (1 / (2 beta))^2. Raises `UserError` when it is not so.
    """
    checked = False

    def losses(ids: Sequence[int], segments: Segments) -> Losses:
        nonlocal checked
        values, metrics = task.losses(ids, segments)
        if not checked:
            checked = True
            tokens = torch.bincount(segments.owner, minlength=2 * len(ids)).view(-1, 2)
            for column, side in enumerate(("chosen", "rejected")):
                off = (metrics[f"{side}_logratio"].abs() / tokens[:, column]).max().item()
                if not off <= allowed:
                    raise UserError(
                        f"step 1: the policy is not the reference ({side} log-ratios of {off:.2g} nats per token); "
                        "delete the reference cache's manifest and rerun"
                    )
        return values, metrics

    return Task(losses, task.normaliser)


def displacement(model: PreTrainedModel, store: Store, tokens_per_batch: int) -> Callable[[], dict[str, float]]:
    """How far the first held-out comparisons have moved from where the policy starts, whatever the loss reads.

    The start is measured here, from the policy itself; a resumed training has moved on, so it measures again from the
    weights that it was given before any state is loaded.
    """
    watched = [store[index] for index in range(min(PROBED, len(store)))]

    def measure() -> list[LogProbs]:
        device = next(model.parameters()).device
        with torch.no_grad(), autocast(device):
            return [logprobs(model, segments.to(device)) for _, segments in packed(watched, tokens_per_batch)]

    start = measure()

    def probe() -> dict[str, float]:
        ratio = torch.cat([(now - then).total for now, then in zip(measure(), start, strict=True)])
        gap = margin(ratio)
        named = {"chosen_logratio": ratio[:, 0], "rejected_logratio": ratio[:, 1], "margin": gap}
        named |= {"accuracy": (gap > 0) + 0.5 * (gap == 0), "chosen_fell": (ratio[:, 0] < 0).float()}
        return {f"held_out_{name}": value.double().mean().item() for name, value in named.items()}

    return probe


@torch.no_grad()
def held_out_means(task: Task, store: Store, tokens_per_batch: int, device: torch.device) -> dict[str, float]:
    """Means of the loss and of every metric over the validation comparisons."""
    sums: dict[str, float] = {}
    for ids, segments in packed(store, tokens_per_batch):
        with autocast(device):
            values, metrics = task.losses(ids, segments.to(device))
        for name, value in {"loss": values, **metrics}.items():
            sums[name] = sums.get(name, 0.0) + value.double().sum().item()
    return {f"validation_{name}": value / len(store) for name, value in sums.items()} if np.size(store.rows) else {}
