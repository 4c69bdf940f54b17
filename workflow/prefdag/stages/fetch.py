"""Fetching: rows, model, tokenizer and classifier from the Hub, an address, local files, or the embedded text world."""

import json
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any

from prefdag.config.classifier import Classifier
from prefdag.config.data import SPLITS, Data, World
from prefdag.config.model import MODEL_FILES, TOKENIZER_FILES, Origin
from prefdag.data.mixture import iter_mixed_rows, iter_source_rows
from prefdag.data.rows import Row, refuse_lfs_pointer, write_rows
from prefdag.data.sources.resolve import SourceFiles, model_files, row_files
from prefdag.data.synthetic.reviews import Review, prompts, reviews
from prefdag.errors import UserError
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.seeds import named_seed

DRAWN_PER_HELD_OUT = 20  # most reviews begin like one of those before


class Job(Section):
    data: Data | None = None
    model: Origin | None = None
    tokenizer: Origin | None = None
    classifier: Classifier | None = None
    lock: str | None = None


def run(job: Job, workspace: Workspace) -> dict[str, Any]:
    """Fetch one thing: `data`, `model`, `tokenizer` or `classifier`, as the key of the config says."""
    if job.data is not None:
        world = job.data.world if job.data.source == "world" else None
        return _world(world, workspace.output) if world is not None else _rows(job.data, workspace, job.lock)
    if job.model is not None:
        found = model_files(job.model, "model", job.lock, MODEL_FILES)
        _check_model("model", found)
        _copy(found.files, workspace.output / "model")
    elif job.tokenizer is not None:
        found = model_files(job.tokenizer, "tokenizer", job.lock, TOKENIZER_FILES)
        _copy_tokenizer(job.tokenizer.source, found.files, workspace.output / "tokenizer")
    elif job.classifier is not None:
        origin = Origin(source=job.classifier.source, revision=job.classifier.revision)
        found = model_files(origin, "classifier", job.lock, MODEL_FILES)
        _check_model("classifier", found)
        _check_classifier(job.classifier, found.files)
        _copy(found.files, workspace.output / "model")
    else:
        raise UserError("fetch --config: name one of data, model, tokenizer and classifier")
    return {"commit": found.commit} if found.commit else {}


def _world(world: World, folder: Path) -> dict[str, Any]:
    """Reviews to learn from, and prompts; no two splits share a prompt."""
    drawn = reviews(world.seed, world.reviews + DRAWN_PER_HELD_OUT * world.validation_reviews)
    taken: set[str] = set()

    def rows(part: Iterator[Review]) -> Iterator[Row]:
        for review in part:
            taken.add(review.prompt)
            yield {"prompt": review.prompt, "continuation": review.continuation}

    facts = {"train": write_rows(folder / "train.jsonl", rows(islice(drawn, world.reviews)))}
    seen = frozenset(taken)
    held_out = islice((review for review in drawn if review.prompt not in seen), world.validation_reviews)
    facts["validation"] = write_rows(folder / "validation.jsonl", rows(held_out))
    for split in SPLITS[:3]:
        found = prompts(named_seed(world.seed, "prompts", split), getattr(world, f"{split}_prompts"), taken)
        taken.update(found)
        facts[f"prompts-{split}"] = write_rows(folder / f"prompts-{split}.jsonl", ({"prompt": text} for text in found))
    return facts


def _rows(data: Data, workspace: Workspace, lock: str | None) -> dict[str, Any]:
    """The rows of each split that the suite names, as JSONL; the sources, with every file's hash, are told as facts."""
    sources = data.sources or (data,)
    keys = [f"data.sources.{index}" for index in range(len(data.sources))] or ["data"]
    found = [
        row_files(source, key, lock, workspace.resume / str(index))
        for index, (source, key) in enumerate(zip(sources, keys, strict=True))
    ]
    facts: dict[str, Any] = {"sources": [{split: part.facts() for split, part in parts.items()} for parts in found]}
    for split in SPLITS:
        if any(split in parts for parts in found):
            rows = iter_mixed_rows(data, found, split) if data.sources else iter_source_rows(data, found[0][split])
            facts[split] = write_rows(workspace.output / f"{split}.jsonl", rows)
            if not facts[split]:
                raise UserError(f"data.{split}: {data.source} holds no rows for it")
            print(f"fetch: {split}: {facts[split]} rows", flush=True)
    return facts


def _check_model(key: str, found: SourceFiles) -> None:
    """Raises `UserError` for what is no model: no config, no weights, or pointers in their place."""
    if "config.json" not in found.files:
        raise UserError(f"{key}.source: {found.source} holds no config.json, so it is no model folder")
    weights = [path for name, path in found.files.items() if name.endswith(".safetensors")]
    if not weights:
        raise UserError(f"{key}.source: {found.source} holds no weights (*.safetensors); convert or download them")
    for path in weights:
        refuse_lfs_pointer(path)


def _check_classifier(classifier: Classifier, files: Mapping[str, Path]) -> None:
    """Raises `UserError` where the classifier has no such label, or reads fewer tokens than the suite says."""
    labels = [str(label) for label in json.loads(files["config.json"].read_text()).get("id2label", {}).values()]
    if classifier.positive not in labels:
        known = ", ".join(labels) or "none named"
        raise UserError(
            f"classifier.positive: {classifier.source} has no label {classifier.positive!r}; its labels are {known}"
        )
    if len(labels) < 2:
        raise UserError(f"classifier.source: {classifier.source} has one label, so its probability is always 1")
    about = files.get("tokenizer_config.json")
    reach = json.loads(about.read_text()).get("model_max_length") if about else None
    if reach is not None and classifier.max_tokens > reach:
        raise UserError(
            f"classifier.max_tokens: {classifier.source} reads {reach:g} tokens, not {classifier.max_tokens}; lower it"
        )


def _copy(files: Mapping[str, Path], target: Path) -> None:
    target.mkdir()
    for name, path in files.items():
        shutil.copy(path, target / name)


def _copy_tokenizer(source: str, files: Mapping[str, Path], target: Path) -> None:
    """A tokenizer that loads offline; a bare byte-level BPE (vocab.json, merges.txt) is given GPT-2's end of text."""
    if {"tokenizer.json", "tokenizer_config.json"} <= set(files):
        kept = ("tokenizer*.json", "special_tokens_map.json", "*.jinja")
        _copy({name: at for name, at in files.items() if any(fnmatch(name, pattern) for pattern in kept)}, target)
        return
    if not {"vocab.json", "merges.txt"} <= set(files):
        raise UserError(f"model.tokenizer: {source} holds neither tokenizer.json nor vocab.json with merges.txt")
    from transformers import GPT2Tokenizer

    end = "<|endoftext|>"
    _copy({name: files[name] for name in ("vocab.json", "merges.txt")}, target)
    tokenizer = GPT2Tokenizer.from_pretrained(
        target, bos_token=end, eos_token=end, unk_token=end, local_files_only=True
    )
    shutil.rmtree(target)
    tokenizer.save_pretrained(target)
