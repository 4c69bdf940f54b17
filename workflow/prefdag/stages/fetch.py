"""Fetching: rows, model and tokenizer from the Hub, from local files, or from the embedded text world."""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from prefdag.config.data import Data, World
from prefdag.config.model import Origin
from prefdag.config.section import Section
from prefdag.errors import UserError
from prefdag.hub import snapshot
from prefdag.rows import Row, read_rows, refuse_lfs_pointer, write_rows
from prefdag.seeds import named_seed
from prefdag.stage import Workspace
from prefdag.world import Review, prompts, reviews

HUB = "hub:"
DRAWN_PER_HELD_OUT = 20  # most reviews begin like one of those before
SPLITS = ("train", "validation", "test")
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors")


class Job(Section):
    data: Data | None = None
    model: Origin | None = None
    tokenizer: Origin | None = None


def run(job: Job, here: Workspace) -> dict[str, Any]:
    """Fetch one thing: `data`, `model` or `tokenizer`, as the key of the config says."""
    if job.data is not None:
        world = job.data.world if job.data.source == "world" else None
        return _world(world, here.output) if world is not None else _rows(job.data, here)
    if job.model is not None:
        folder, commit = _located(job.model, "model", MODEL_FILES)
        _check_model(folder)
        _copy(folder, here.output / "model", MODEL_FILES)
    elif job.tokenizer is not None:
        folder, commit = _located(job.tokenizer, "tokenizer", TOKENIZER_FILES)
        _copy_tokenizer(folder, here.output / "tokenizer")
    else:
        raise UserError("fetch --config: name one of data, model and tokenizer")
    return {"commit": commit} if commit else {}


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
    for split in SPLITS:
        found = prompts(named_seed(world.seed, "prompts", split), getattr(world, f"{split}_prompts"), taken)
        taken.update(found)
        facts[f"prompts-{split}"] = write_rows(folder / f"prompts-{split}.jsonl", ({"prompt": text} for text in found))
    return facts


def _rows(data: Data, here: Workspace) -> dict[str, Any]:
    """The rows of each split that the suite names, as JSONL, in the order of the files."""
    patterns = {split: pattern for split in SPLITS if (pattern := getattr(data, split))}
    folder, commit = _located(Origin(source=data.source, revision=data.revision), "data", tuple(patterns.values()))
    facts: dict[str, Any] = {"commit": commit} if commit else {}
    for split, pattern in patterns.items():
        files = [folder] if folder.is_file() else sorted(folder.glob(pattern))
        if not files:
            raise UserError(f"data.{split}: no file matches {pattern!r} in {data.source}")
        rows = (row for file in files for row in read_rows(file))
        facts[split] = write_rows(here.output / f"{split}.jsonl", islice(rows, data.max_rows))
        if not facts[split]:
            raise UserError(f"data.{split}: {pattern!r} in {data.source} holds no rows")
        print(f"fetch: {split}: {facts[split]} rows", flush=True)
    return facts


def _located(origin: Origin, key: str, patterns: tuple[str, ...]) -> tuple[Path, str | None]:
    """The local folder of a source, and its commit where it comes from the Hub."""
    if origin.source.startswith(HUB):
        name = origin.source.removeprefix(HUB)
        return snapshot(name, "dataset" if key == "data" else "model", origin.revision, patterns)
    path = Path(origin.source)
    if not path.exists():
        raise UserError(f"{key}.source: {origin.source} does not exist; give a local path or `{HUB}owner/name`")
    return path, None


def _check_model(folder: Path) -> None:
    """Raises `UserError` for a folder that is no model: no config, no weights, or pointers in their place."""
    if not (folder / "config.json").is_file():
        raise UserError(f"model.source: {folder} holds no config.json, so it is no model folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"model.source: {folder} holds no weights (*.safetensors); convert or download them")
    for path in weights:
        refuse_lfs_pointer(path)


def _copy(folder: Path, target: Path, patterns: tuple[str, ...]) -> None:
    target.mkdir()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        shutil.copy(path, target / path.name)


def _copy_tokenizer(folder: Path, target: Path) -> None:
    """A tokenizer that loads offline; a bare byte-level BPE (vocab.json, merges.txt) is given GPT-2's end of text."""
    if (folder / "tokenizer.json").is_file() and (folder / "tokenizer_config.json").is_file():
        _copy(folder, target, ("tokenizer*.json", "special_tokens_map.json", "*.jinja"))
        return
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        raise UserError(f"model.tokenizer: {folder} holds neither tokenizer.json nor vocab.json with merges.txt")
    from transformers import GPT2Tokenizer

    end = "<|endoftext|>"
    tokenizer = GPT2Tokenizer.from_pretrained(
        folder, bos_token=end, eos_token=end, unk_token=end, local_files_only=True
    )
    tokenizer.save_pretrained(target)
