"""Templating and tokenising: raw rows to token stores, with an audit of every row."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from prefdag.config.prepare import Prepare
from prefdag.data.adapters.registry import iter_comparisons
from prefdag.data.audit import SplitAudit, audit_page, findings, samples_page
from prefdag.data.dedup import DuplicateIndex
from prefdag.data.parallel import map_ordered, num_cores, with_progress
from prefdag.data.preprocess import Chunk, ChunkEncoder, EncodedChunk, iter_chunks
from prefdag.data.token_store import Store, StoreWriter
from prefdag.data.tokenization import load_tokenizer
from prefdag.errors import UserError
from prefdag.models.window import check_window
from prefdag.provenance.manifest import read_manifest
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section

SPLITS = ("train", "validation", "test")
SPLITS_OF = {"comparisons": SPLITS, "ood": ("test",)}  # of a dataset; others have no test split
ENCODED_AT_ONCE = 500
SFT_PROMPTS = "prompts.npy"  # digests of the prompts that SFT trains on, int64, sorted


class Job(Section):
    prepare: Prepare
    dataset: Literal["demonstrations", "comparisons", "rankings", "ood"]


def run(
    job: Job, workspace: Workspace, *, rows: Path, tokenizer: Path, demonstrations: Path | None = None
) -> dict[str, Any]:
    """Write one token store per split, the audit, and a page of samples.

    Of the dataset `ood`, prompts of another input distribution with their best response, the one split is test.
    demonstrations: what SFT trains on, to tell which of these prompts it has seen.
    """
    folders = [tokenizer.parent / name for name in ("model", "tokenizer")]
    model = next((folder for folder in folders if folder.is_dir()), folders[0])
    vocabulary = load_tokenizer(model)
    reach = job.prepare.max_prompt_tokens + job.prepare.max_response_tokens
    check_window(model, reach, "prepare.max_prompt_tokens and max_response_tokens")
    sampled = read_manifest(rows).content["stage"] == "pairs"
    adapter = "pairs" if sampled else job.prepare.adapter
    folder = rows.parent / "rankings" if sampled and job.dataset == "rankings" else rows.parent
    splits = SPLITS_OF.get(job.dataset, SPLITS[:2])
    places = {split: folder / f"{'ood' if job.dataset == 'ood' else split}.jsonl" for split in splits}
    files = {split: path for split, path in places.items() if path.is_file()}
    if job.prepare.leakage == "drop" and job.dataset != "ood":  # what is held out is read first, and by whoever trains
        tested = {"test": folder / "test.jsonl"} if (folder / "test.jsonl").is_file() else {}
        files = dict(reversed((files | tested).items()))
    shares = {"validation": job.prepare.validation_fraction, "test": job.prepare.test_fraction}
    held_out = {split: 0.0 if (folder / f"{split}.jsonl").is_file() else share for split, share in shares.items()}
    num_responses = {"demonstrations": 1, "ood": 1, "comparisons": 2}.get(job.dataset) or _ranked(
        adapter, files["train"]
    )
    encoder = ChunkEncoder(job.prepare, adapter, num_responses, vocabulary, held_out, whole=job.dataset == "rankings")
    scratch = workspace.resume
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    audits = _write(job, workspace.output, scratch, files, encoder, splits)
    likes = {split: DuplicateIndex(scratch / f"{split}.traits") for split in splits}
    _number_prompts(workspace.output, splits)
    report: dict[str, Any] = {
        "dataset": job.dataset,
        "shared_prompts": _shared_prompts(job, workspace.output, likes, vocabulary, demonstrations),
        "splits": {split: audit.to_dict(likes[split]) for split, audit in audits.items()},
    }
    told = [line for split in splits for line in findings(split, report["splits"][split])]
    if not audits[splits[0]].used:
        raise UserError(f"{files[splits[0]]}: no row of the {splits[0]} split can be used: {'; '.join(told)}")
    print("\n".join(f"prepare: {job.dataset}: {line}" for line in told), flush=True)
    if job.dataset == "demonstrations":
        np.save(workspace.output / SFT_PROMPTS, np.unique(likes["train"].prompts))
    _write_pages(
        workspace, report, samples_page(Store.open(workspace.output / splits[0]), vocabulary, f"{job.dataset}: samples")
    )
    return {split: {"rows_in": audit.rows_in, "used": audit.used} for split, audit in audits.items()}


def _ranked(adapter: str, train: Path) -> int:
    """K of rankings: how many responses the first usable row has; a row of another K is left out and counted."""
    first = next(iter_comparisons(adapter, train), None)
    return max(2, len(first.responses)) if first is not None else 2


def _write_pages(workspace: Workspace, report: dict[str, Any], samples: str) -> None:
    pages = {
        "audit.json": json.dumps(report, indent=1, sort_keys=True) + "\n",
        "audit.html": audit_page(report),
        "samples.html": samples,
    }
    for name, text in pages.items():
        (workspace.output / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        workspace.journal.artifact(workspace.output / name, f"{report['dataset']}-{name}")


def _write(
    job: Job, output: Path, scratch: Path, files: dict[str, Path], encoder: ChunkEncoder, splits: tuple[str, ...]
) -> dict[str, SplitAudit]:
    """One pass over the rows: token stores into `output`, their traits into `scratch`; returns the counts."""
    audits = {split: SplitAudit() for split in splits}
    leaks = _Leaks()
    with ExitStack() as stack:
        stores = {split: stack.enter_context(_Split(output / split, encoder.num_responses)) for split in splits}
        traits = {split: stack.enter_context((scratch / f"{split}.traits").open("wb")) for split in splits}
        for found in _encoded(job, files, encoder):
            for split, reason, row in found.dropped:
                if split in audits:
                    audits[split].drop(reason, row)
            for index, kept in enumerate(found.kept):
                trait = found.traits[index]
                owner = leaks.owner(kept.split, int(trait["prompt"])) if job.prepare.leakage == "drop" else None
                if kept.split in audits and owner:
                    audits[kept.split].drop(f"a prompt that is held out in {owner}", kept.row)
                elif kept.split in audits:
                    stores[kept.split].add(kept.prompt, kept.responses, kept.row, int(trait["prompt"]), kept.scores)
                    traits[kept.split].write(trait.tobytes())
                    audits[kept.split].use(kept)
    return audits


def _encoded(job: Job, files: dict[str, Path], encoder: ChunkEncoder) -> Iterator[EncodedChunk]:
    total = sum(path.stat().st_size for path in files.values())

    def waiting() -> Iterator[Chunk]:
        for split, path in files.items():
            # Rows of the train file may fall to splits that have no file of their own.
            yield from iter_chunks(path, None if split == "train" else split, ENCODED_AT_ONCE)

    workers = min(num_cores(), 1 + total // (1 << 20))  # a worker is worth its fork from a megabyte on
    found = map_ordered(encoder, waiting(), workers)
    return with_progress(found, lambda one: one.size, total, f"prepare: {job.dataset}")


class _Leaks:
    """Prompts by the split that holds them out. Splits come from the last, test, to the first."""

    def __init__(self) -> None:
        self._held: dict[str, set[int]] = {split: set() for split in SPLITS[1:]}

    def owner(self, split: str, prompt: int) -> str | None:
        """The later split that holds a row's prompt out, None where the row may stay in its own."""
        later = SPLITS[SPLITS.index(split) + 1 :]
        found = next((one for one in later if prompt in self._held[one]), None)
        if found is None and split in self._held:
            self._held[split].add(prompt)
        return found


class _Split:
    """The store of one split, with scores where its rows have them. Raises `UserError` where only some have."""

    def __init__(self, folder: Path, num_responses: int) -> None:
        self.folder, self.num_responses = folder, num_responses
        self.writer: StoreWriter | None = None

    def __enter__(self) -> "_Split":
        return self

    def add(self, prompt: list[int], responses: list[list[int]], row: int, digest: int, scores: Any) -> None:
        if self.writer is None:
            self.writer = StoreWriter(self.folder, self.num_responses, scores is not None)
        if self.writer.scored != (scores is not None):
            where = f"{self.folder.name}: row {row}"
            raise UserError(f"{where}: scores stand in some rows only; give every row scores or none")
        self.writer.add(prompt, responses, row=row, prompt=digest, scores=scores)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            return
        (self.writer or StoreWriter(self.folder, self.num_responses, scored=False)).close()


def _number_prompts(output: Path, splits: tuple[str, ...]) -> None:
    """Digests of prompts become numbers from 0, in the order in which the prompts first come."""
    digests = [np.load(output / split / "prompts.npy") for split in splits]
    _, first, inverse = np.unique(np.concatenate(digests), return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[inverse]
    for split, part in zip(splits, np.split(numbers, np.cumsum([len(part) for part in digests])[:-1]), strict=True):
        np.save(output / split / "prompts.npy", part.astype(np.int64))


def _shared_prompts(
    job: Job,
    output: Path,
    likes: dict[str, DuplicateIndex],
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Path | None,
) -> dict[str, int]:
    """Prompts that two splits have in common, and those that SFT trains on.

    Raises `UserError` where a held-out prompt is trained on, unless the suite allows it: a test would know its answers.
    """
    owners = {f"the {split} split": likes[split].prompts for split in likes}
    if demonstrations is not None:
        owners["SFT's training"] = np.load(demonstrations.parent / SFT_PROMPTS)
    shared = {}
    for split, own in likes.items():
        for owner, others in owners.items():
            if owner == f"the {split} split" or (split == "train" and owner.startswith("the ")):
                continue  # of train and another split, the other one tells
            found = np.flatnonzero(np.isin(own.prompts, others))
            if not len(found):
                continue
            shared[f"{split} and {owner.removeprefix('the ')}"] = len(np.unique(own.prompts[found]))
            if split != "train" and job.prepare.leakage == "error":
                prompt = Store.open(output / split)[int(found[0])].prompt
                text = str(tokenizer.decode(prompt, skip_special_tokens=True))[:60]
                raise UserError(
                    f"{split}: the prompt {text!r} is in {owner} too; split the data by prompt, or set "
                    "prepare.leakage to allow"
                )
    return shared
