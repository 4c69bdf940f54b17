"""Artifacts of stages written by hand: manifests, reference caches, aligned policies."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from comparisons import tiny
from prefdag.data.token_store import Store
from prefdag.provenance.manifest import Manifest, describe, read_manifest
from prefdag.training.reference_cache import ReferenceCache, write_cache

BUDGET = 60  # tokens per micro-batch of `cache_of`


def manifest_of(folder: Path, facts: object = None) -> Manifest:
    """A manifest of what a folder holds, as a stage would leave it."""
    (folder / "manifest.json").write_bytes(describe(folder, "tests", {}, {}, {}, facts))
    return read_manifest(folder / "manifest.json")


def cache_of(folder: Path, model: PreTrainedModel, store: Store) -> ReferenceCache:
    folder.mkdir()
    write_cache(model, store, folder / "train.npy", BUDGET)
    return ReferenceCache(manifest_of(folder).file("train.npy"), store)


def run_of(folder: Path, method: str, inputs: dict[str, str], **options: float) -> Path:
    """The manifest of an aligned policy: every weight of the SFT policy moved a little."""
    model = tiny(dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data *= 1.05
    model.save_pretrained(folder / "model")
    manifest = manifest_of(folder)
    content = {**manifest.content, "inputs": inputs, "config": {"objective": {"method": method, **options}}}
    del content["seal"]  # of the old content
    manifest.path.write_text(json.dumps(content))
    return manifest.path
