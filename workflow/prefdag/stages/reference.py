"""The reference cache: SFT policy and comparisons to per-token log-probs, once for every loss, beta and seed."""

from pathlib import Path
from typing import Any

from prefdag.config.reference import Reference
from prefdag.config.section import Section
from prefdag.manifest import read_manifest
from prefdag.models import load_policy, set_up
from prefdag.reference import cache_key, write_cache
from prefdag.stage import Workspace
from prefdag.store import Store

SPLITS = ("train", "validation")


class Job(Section):
    reference: Reference


def run(job: Job, here: Workspace, *, policy: Path, comparisons: Path) -> dict[str, Any]:
    """One forward pass of the SFT policy over every comparison that preference training reads."""
    device = set_up(job.reference.threads)
    here.reads_model("policy", "sft")
    model = load_policy(policy.parent / "model", device)
    counts = {}
    for split in SPLITS:
        here.reads_dataset("comparisons", split, "evaluation")
        store = Store.open(comparisons.parent / split)
        counts[split] = write_cache(model, store, here.output / f"{split}.npy", job.reference.tokens_per_batch)
        print(f"reference: {split}: {len(store)} comparisons, {counts[split]} response tokens", flush=True)
    return {"key": cache_key(read_manifest(policy), read_manifest(comparisons), device), "tokens": counts}
