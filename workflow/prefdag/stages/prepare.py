"""Templating and tokenising: raw rows to token stores, with an audit of every row."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from prefdag.adapters import TextComparison, comparisons
from prefdag.audit import SplitAudit, samples_page
from prefdag.config.prepare import Prepare
from prefdag.config.section import Section
from prefdag.errors import UserError
from prefdag.manifest import read_manifest
from prefdag.stage import Workspace
from prefdag.store import Store, StoreWriter
from prefdag.tokens import encode_prompts, encode_responses, end_of_turn, load_tokenizer

SPLITS = ("train", "validation", "test")
ENCODED_AT_ONCE = 1000
Rows = Iterator[tuple[int, TextComparison]]


class Job(Section):
    prepare: Prepare
    dataset: Literal["demonstrations", "comparisons", "rankings"]


def run(job: Job, here: Workspace, *, rows: Path, tokenizer: Path) -> dict[str, Any]:
    """Write one token store per split, the audit, and a page of samples."""
    sampled = read_manifest(rows).content["stage"] == "pairs"
    folders = [tokenizer.parent / name for name in ("model", "tokenizer")]
    vocabulary = load_tokenizer(next((folder for folder in folders if folder.is_dir()), folders[0]))
    adapter = "pairs" if sampled else job.prepare.adapter
    folder = rows.parent / "rankings" if sampled and job.dataset == "rankings" else rows.parent
    prompts: dict[bytes, tuple[int, str]] = {}
    audits, stores = {}, {}
    for split in SPLITS if job.dataset == "comparisons" else SPLITS[:2]:
        source = folder / f"{split}.jsonl"
        own_file = source.is_file()
        audit = audits[split] = SplitAudit()
        unusable: dict[str, list[int]] = {}
        found = comparisons(adapter, source if own_file else folder / "train.jsonl", unusable)
        kept = _of_split(job.prepare, found, split, own_file, folder, audit)
        _write_split(job, here.output / split, kept, vocabulary, audit, split, prompts)
        if own_file:  # else they are rows of the train file, named there
            audit.unusable(unusable)
        stores[split] = store = Store.open(here.output / split)
        if not len(store) and split == "train":
            raise UserError(f"{source}: no row of the train split can be used: {'; '.join(audit.findings(split))}")
        print("\n".join(f"prepare: {job.dataset}: {line}" for line in audit.findings(split)), flush=True)
    report = {"dataset": job.dataset, "splits": {split: audit.to_dict() for split, audit in audits.items()}}
    (here.output / "audit.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    page = samples_page(stores["train"], vocabulary, f"{job.dataset}: samples")
    (here.output / "samples.html").write_text(page, encoding="utf-8")
    for name in ("audit.json", "samples.html"):
        here.journal.artifact(here.output / name, f"{job.dataset}-{name}")
    return {split: {"rows_in": audit.rows_in, "used": audit.used} for split, audit in audits.items()}


def _of_split(prepare: Prepare, found: Rows, split: str, own_file: bool, folder: Path, audit: SplitAudit) -> Rows:
    """The rows that belong to a split: its own file's, or those of train whose prompt falls to it by its hash.

    By the prompt, never by the order of rows: no prompt is trained on and tested with.
    """
    shares = {"validation": prepare.validation_fraction, "test": prepare.test_fraction}
    held = {name: 0.0 if (folder / f"{name}.jsonl").is_file() else share for name, share in shares.items()}
    for number, comparison in found:
        place = _unit_hash(prepare.seed, comparison.prompt)
        fallen = "validation" if place < held["validation"] else "test" if place < sum(held.values()) else "train"
        if fallen == split or (own_file and split != "train"):
            audit.rows_in += 1
            yield number, comparison


def _unit_hash(seed: int, text: str) -> float:
    digest = hashlib.sha256(f"{seed}/{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _write_split(
    job: Job,
    folder: Path,
    found: Rows,
    tokenizer: PreTrainedTokenizerBase,
    audit: SplitAudit,
    split: str,
    prompts: dict[bytes, tuple[int, str]],
) -> None:
    end = end_of_turn(tokenizer, job.prepare)
    first = next(found, None)
    num_responses = {"demonstrations": 1, "comparisons": 2}.get(job.dataset) or _ranked(first)
    scored = num_responses > 1 and first is not None and first[1].scores is not None
    rows = itertools.chain([first], found) if first is not None else iter(())
    if job.dataset == "rankings":
        rows = _of_size(rows, num_responses, audit)
    with StoreWriter(folder, num_responses, scored) as writer:
        while batch := list(itertools.islice(rows, ENCODED_AT_ONCE)):
            for (row, comparison), prompt, responses in _encoded(job, batch, tokenizer, num_responses, split):
                responses = [response + end for response in responses]
                if reason := _over_long(job.prepare, row, split, prompt, responses):
                    audit.drop(reason, row)
                    continue
                number = _prompt_number(comparison.prompt, split, prompts)
                if num_responses > 1 and (comparison.scores is not None) != scored:
                    raise UserError(
                        f"{split}: row {row}: scores stand in some rows only; give every row scores or none"
                    )
                scores = list(comparison.scores[:num_responses]) if scored and comparison.scores else None
                writer.add(prompt, responses, row=row, prompt=number, scores=scores)
                audit.use(len(prompt), [len(response) for response in responses])


def _ranked(first: tuple[int, TextComparison] | None) -> int:
    """K of a split's rankings: that of its first row; a row of another K is left out and counted."""
    return max(2, len(first[1].responses)) if first is not None else 2


def _of_size(found: Rows, num_responses: int, audit: SplitAudit) -> Rows:
    for row, comparison in found:
        if len(comparison.responses) == num_responses:
            yield row, comparison
        else:
            audit.drop(f"{len(comparison.responses)} responses, not {num_responses} as the first row has", row)


def _encoded(
    job: Job,
    batch: list[tuple[int, TextComparison]],
    tokenizer: PreTrainedTokenizerBase,
    num_responses: int,
    split: str,
) -> Iterator[tuple[tuple[int, TextComparison], list[int], list[list[int]]]]:
    for row, comparison in batch:
        if len(comparison.responses) < num_responses:
            raise UserError(f"{split}: row {row}: {len(comparison.responses)} response, but a comparison needs two")
    texts = [response for _, comparison in batch for response in comparison.responses[:num_responses]]
    prompts = encode_prompts(tokenizer, [comparison.prompt for _, comparison in batch], job.prepare)
    responses = encode_responses(tokenizer, texts, job.prepare)
    for index, (row, comparison) in enumerate(batch):
        own = responses[index * num_responses : (index + 1) * num_responses]
        if not all(own):
            raise UserError(f"{split}: row {row}: a response comes to no token; remove it or change the tokenizer")
        yield (row, comparison), prompts[index], own


def _over_long(prepare: Prepare, row: int, split: str, prompt: list[int], responses: list[list[int]]) -> str | None:
    """Why a row is over the limits, or None; with `over_long: error` that is a mistake to be told."""
    longest = max(map(len, responses))
    limits = (("prompt", len(prompt), prepare.max_prompt_tokens), ("response", longest, prepare.max_response_tokens))
    for what, length, limit in limits:
        if length > limit:
            if prepare.over_long == "error":
                key = f"prepare.max_{what}_tokens"
                raise UserError(
                    f"{split}: row {row}: a {what} of {length} tokens is over {key} {limit}; raise it or drop"
                )
            return f"{what} over {limit} tokens"
    return None


def _prompt_number(text: str, split: str, prompts: dict[bytes, tuple[int, str]]) -> int:
    """A number per distinct prompt. Raises `UserError` when two splits share one: a test would know its answers."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
    number, owner = prompts.setdefault(digest, (len(prompts), split))
    if owner != split:
        raise UserError(f"{split}: the prompt {text[:60]!r} is in the {owner} split too; split the data by prompt")
    return number
