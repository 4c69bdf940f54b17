"""The reference cache: per-token log-probs of the reference policy, once for every loss, beta and seed.

The reference is SFT, or in rounds of on-policy training perhaps the policy that the round starts from.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from prefdag.config.sections.reference import Reference
from prefdag.data.token_store import Store
from prefdag.models.loading import load_policy, set_up
from prefdag.models.route import route_facts, route_of
from prefdag.provenance.manifest import read_manifest
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.training.reference_cache import cache_key, write_cache

SPLITS = ("train", "validation")


class Job(Section):
    reference: Reference
    precision: Literal["float32", "bfloat16"] | None = Field(None, description="of the runs that read the cache")


def run(job: Job, workspace: Workspace, *, policy: Path, comparisons: Path) -> dict[str, Any]:
    """Run the reference policy once over every comparison that preference training reads.

    Args:
        job: the config.
        workspace: where to write, and the journal.
        policy: manifest of the reference policy.
        comparisons: manifest of the comparisons' token stores.

    Returns:
        The cache's key, and the response tokens of each split.
    """
    device = set_up(job.reference.threads, job.precision)
    workspace.log_model_input("policy", policy.parent.name)
    model = load_policy(policy.parent / "model", device)
    counts = {}
    for split in SPLITS:
        workspace.log_dataset("comparisons", split, "evaluation")
        store = Store.open(comparisons.parent / split)
        counts[split] = write_cache(model, store, workspace.output / f"{split}.npy", job.reference.tokens_per_batch)
        print(f"reference: {split}: {len(store)} comparisons, {counts[split]} response tokens", flush=True)
    key = cache_key(read_manifest(policy), read_manifest(comparisons), device, route_of(model))
    return {"key": key, "tokens": counts, **route_facts(model)}
