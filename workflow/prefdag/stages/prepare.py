"""Turn raw rows into token stores, with an audit of every row."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from prefdag.config.prepare import Prepare
from prefdag.config.sections.evaluate_reward import SubsetSections
from prefdag.data.adapters.registry import has_prompts, iter_comparisons
from prefdag.data.audit import SplitAudit, audit_page, findings, samples_page
from prefdag.data.dedup import DuplicateIndex
from prefdag.data.dropped import warnings
from prefdag.data.parallel import map_ordered, num_cores, with_progress
from prefdag.data.preprocess import UNDESIRABLE, ChunkEncoder, EncodedChunk, EncodedRow, iter_chunks
from prefdag.data.row_files import RowFiles, row_files
from prefdag.data.settled import changes_of, settle
from prefdag.data.splits import SPLITS, HeldOutPrompts, check_sizes, held_out_shares
from prefdag.data.subset_labels import check_sections, labels_of_store
from prefdag.data.token_store import Store, StoreWriter
from prefdag.data.tokenization import check_rows, load_tokenizer
from prefdag.errors import UserError
from prefdag.provenance.manifest import read_manifest
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section

RESPONSES_OF = {"demonstrations": 1, "ood": 1, "evaluated": 2}  # of a dataset; of others the first row decides
LINES_PER_CHUNK = 500
BYTES_PER_WORKER = 1 << 20  # starting a worker pays off from a megabyte on
SFT_PROMPTS = "prompts.npy"  # digests of the prompts that SFT trains on, int64, sorted
SFT_QUESTIONS = "questions.npy"  # the same, in any format, where SFT has rows of its own


class Job(Section):
    prepare: Prepare
    dataset: Literal["demonstrations", "comparisons", "rankings", "ood", "evaluated"]
    # Of comparisons to measure the reward model on: what `evaluate_reward` will read of their rows.
    subset: tuple[str, ...] = ()
    sections: SubsetSections = Field({})


def run(
    job: Job, workspace: Workspace, *, rows: Path, tokenizer: Path, demonstrations: Path | None = None
) -> dict[str, Any]:
    """Write one token store per split, the audit, and a page of samples.

    Args:
        job: the section `prepare` and the dataset. `ood` holds prompts of another distribution with their best
            response, `evaluated` comparisons to measure the reward model on; their one split is test.
        workspace: output folder, scratch folder and journal of the job.
        rows: manifest of `fetch` or `pairs`.
        tokenizer: manifest of the model or tokenizer.
        demonstrations: manifest of SFT's data, if its prompts must not be held out here.

    Returns:
        The numbers of rows read and used, by split, and `settled`: values of the keys that the suite leaves open.
    """
    vocabulary = _load_tokenizer(tokenizer)
    inputs = row_files(job.prepare, job.dataset, rows)
    stated = job.prepare
    job = job.model_copy(update={"prepare": settle(stated, vocabulary)})
    settled = changes_of(stated, job.prepare)
    encoder = _encoder(job, inputs, vocabulary)
    shutil.rmtree(scratch := workspace.resume, ignore_errors=True)
    scratch.mkdir(parents=True)
    audits = _write_stores(job, workspace.output, scratch, inputs, encoder)
    duplicates = {split: DuplicateIndex(scratch / f"{split}.signatures") for split in inputs.splits}
    _number_prompts(workspace.output, inputs.splits)
    report: dict[str, Any] = {
        "dataset": job.dataset,
        **({"settled": settled} if settled else {}),
        "shared_prompts": _shared_prompts(job, workspace.output, duplicates, vocabulary, demonstrations),
        "splits": {split: audit.to_dict(duplicates[split]) for split, audit in audits.items()},
    }
    for key, value in settled.items():
        print(f"prepare: {job.dataset}: prepare.{key} is {value!r}, which the suite leaves open", flush=True)
    _print_findings(report, inputs)
    _check_subsets(job, workspace, inputs)
    num_prompts = {split: len(np.unique(index.prompts)) for split, index in duplicates.items()}
    if job.dataset == "demonstrations" and set(audits["validation"].dropped) == {UNDESIRABLE}:
        del num_prompts["validation"]  # SFT measures nothing on held-out prompts without a desirable response
    used = {split: one.used for split, one in audits.items()}
    check_sizes(job.prepare, job.dataset, inputs.files, num_prompts, used, inputs.more_samples)
    if job.dataset == "demonstrations":
        np.save(workspace.output / SFT_PROMPTS, np.unique(duplicates["train"].prompts))
        if read_manifest(rows).content["config"].get("sft_data"):
            np.save(workspace.output / SFT_QUESTIONS, np.unique(duplicates["train"].questions))
    samples = samples_page(Store.open(workspace.output / inputs.splits[0]), vocabulary, f"{job.dataset}: samples")
    _write_pages(workspace, report, samples)
    facts: dict[str, Any] = {split: {"rows_in": one.rows_in, "used": one.used} for split, one in audits.items()}
    return {**facts, "settled": settled} if settled else facts


def _load_tokenizer(tokenizer: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the fetched model, or a tokenizer that is fetched alone."""
    folders = [tokenizer.parent / name for name in ("model", "tokenizer")]
    model = next((folder for folder in folders if folder.is_dir()), folders[0])
    vocabulary = load_tokenizer(model)
    check_rows(vocabulary, model)
    return vocabulary


def _encoder(job: Job, inputs: RowFiles, tokenizer: PreTrainedTokenizerBase) -> ChunkEncoder:
    num_responses = RESPONSES_OF.get(job.dataset) or _num_responses(inputs, job.dataset)
    without_rows = [split for split in SPLITS[1:] if not has_prompts(inputs.folder, split)]
    train = inputs.files.get("train")
    rows = iter_comparisons(inputs.adapter, train) if train else ()
    held_out = held_out_shares(job.prepare, without_rows if train else [], rows, str(train), inputs.more_samples)
    rankings = job.dataset == "rankings"
    labelled = job.dataset == "comparisons" and num_responses == 1
    return ChunkEncoder(job.prepare, inputs.adapter, num_responses, tokenizer, held_out, rankings, labelled)


def _num_responses(inputs: RowFiles, dataset: str) -> int:
    """Return K as the first usable row has it: of rankings all its responses, of comparisons 2, or 1 with a label."""
    train = inputs.files.get("train")
    first = next(iter_comparisons(inputs.adapter, train), None) if train else None
    if dataset == "comparisons":
        return 1 if first is not None and first.is_labelled else 2
    return max(2, len(first.responses)) if first is not None else 2


def _write_stores(
    job: Job, output: Path, scratch: Path, inputs: RowFiles, encoder: ChunkEncoder
) -> dict[str, SplitAudit]:
    """Read all rows once; write token stores to `output` and signatures to `scratch`, and return the counts."""
    audits = {split: SplitAudit() for split in inputs.splits}
    held_out = HeldOutPrompts()
    with ExitStack() as stack:
        stores = {
            split: stack.enter_context(_SplitWriter(output / split, encoder.num_responses)) for split in inputs.splits
        }
        signatures = {
            split: stack.enter_context((scratch / f"{split}.signatures").open("wb")) for split in inputs.splits
        }
        for chunk in _encoded_chunks(job, inputs.files, encoder):
            for split, reason, number in chunk.dropped:
                if split in audits:
                    audits[split].count_dropped(reason, number)
            for row, signature in zip(chunk.rows, chunk.signatures, strict=True):
                prompt = int(signature["prompt"])
                # Rows of a split that the dataset has not are read too: their prompts are held out.
                holder = held_out.holder(row.split, prompt) if job.prepare.leakage == "drop" else None
                if row.split not in audits:
                    continue
                if holder:
                    audits[row.split].count_dropped(f"a prompt that is held out in {holder}", row.row)
                    continue
                stores[row.split].add(row, prompt)
                signatures[row.split].write(signature.tobytes())
                audits[row.split].count_used(row)
    return audits


def _encoded_chunks(job: Job, files: dict[str, Path], encoder: ChunkEncoder) -> Iterator[EncodedChunk]:
    """Encode all files on all cores, in order, with a progress bar."""
    total = sum(path.stat().st_size for path in files.values())
    # Rows of the train file may belong to splits that have no file.
    chunks = (
        chunk
        for split, path in files.items()
        for chunk in iter_chunks(path, None if split == "train" else split, LINES_PER_CHUNK)
    )
    workers = min(num_cores(), 1 + total // BYTES_PER_WORKER)
    encoded = map_ordered(encoder, chunks, workers)
    return with_progress(encoded, lambda chunk: chunk.size, total, f"prepare: {job.dataset}")


class _SplitWriter:
    """Writes the store of one split, with scores if its rows have them. Raises `UserError` if only some have."""

    def __init__(self, folder: Path, num_responses: int) -> None:
        self.folder, self.num_responses = folder, num_responses
        self.writer: StoreWriter | None = None

    def __enter__(self) -> "_SplitWriter":
        return self

    def add(self, row: EncodedRow, prompt: int) -> None:
        scored = row.scores is not None
        if self.writer is None:
            self.writer = StoreWriter(self.folder, self.num_responses, scored)
        if self.writer.scored != scored:
            raise UserError(f"{row.split}: row {row.row + 1}: only some have scores; give every row scores or none")
        self.writer.add(row.prompt, row.responses, row=row.row, prompt=prompt, scores=row.scores)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            (self.writer or StoreWriter(self.folder, self.num_responses, scored=False)).close()


def _number_prompts(output: Path, splits: tuple[str, ...]) -> None:
    """Replace the digests of prompts by numbers from 0, in the order of their first rows."""
    digests = [np.load(output / split / "prompts.npy") for split in splits]
    _, first, inverse = np.unique(np.concatenate(digests), return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[inverse]
    for split, part in zip(splits, np.split(numbers, np.cumsum([len(part) for part in digests])[:-1]), strict=True):
        np.save(output / split / "prompts.npy", part.astype(np.int64))


def _shared_prompts(
    job: Job,
    output: Path,
    duplicates: dict[str, DuplicateIndex],
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Path | None,
) -> dict[str, int]:
    """Count the prompts that two splits share, and those that SFT trains on.

    Raises `UserError` if a held-out prompt is trained on, unless the suite allows it: a model would know the answers.
    """
    owners = {f"the {split} split": index.prompts for split, index in duplicates.items()}
    has_other_rows = demonstrations is not None and (demonstrations.parent / SFT_QUESTIONS).is_file()
    if demonstrations is not None:
        owners["SFT's training"] = np.load(demonstrations.parent / (SFT_QUESTIONS if has_other_rows else SFT_PROMPTS))
    shared = {}
    for split, index in duplicates.items():
        for owner, prompts in owners.items():
            if owner == f"the {split} split" or (split == "train" and owner.startswith("the ")):
                continue  # train and another split are compared once, as that of the other split
            from_sft_data = has_other_rows and not owner.startswith("the ")
            rows = np.flatnonzero(np.isin(index.questions if from_sft_data else index.prompts, prompts))
            if not len(rows):
                continue
            shared[f"{split} and {owner.removeprefix('the ')}"] = len(np.unique(index.prompts[rows]))
            if split != "train" and job.prepare.leakage != "allow":
                prompt = Store.open(output / split)[int(rows[0])].prompt
                text = str(tokenizer.decode(prompt, skip_special_tokens=True))[:60]
                if from_sft_data:
                    raise UserError(
                        f"{split}: the prompt {text!r} is in {owner} too; remove such rows from the source of "
                        "sft.data, or set prepare.leakage to allow"
                    )
                # With `drop`, only data that were prepared from other rows still share a prompt.
                hint = "to drop, which leaves such training rows out, or " if job.prepare.leakage == "error" else ""
                raise UserError(
                    f"{split}: the prompt {text!r} is in {owner} too; set prepare.leakage {hint}to allow, or split the "
                    "data by prompt"
                )
    return shared


def _print_findings(report: dict[str, Any], inputs: RowFiles) -> None:
    """Print what the audit found. Raises `UserError` if no row of the first split can be used."""
    lines = [line for split in inputs.splits for line in findings(split, report["splits"][split])]
    first = inputs.splits[0]
    if not report["splits"][first]["used"]:
        reasons = "; ".join(filter(None, [*lines, inputs.more_samples]))
        raise UserError(f"{inputs.files[first]}: no row of the {first} split can be used: {reasons}")
    lines += [f"warning: {sentence}" for sentence in warnings(report["splits"], (UNDESIRABLE,))]
    print("\n".join(f"prepare: {report['dataset']}: {line}" for line in lines), flush=True)


def _check_subsets(job: Job, workspace: Workspace, inputs: RowFiles) -> None:
    """Raise `UserError` now, before any training, if `evaluate_reward` cannot read the subsets of its set's rows."""
    if job.subset:
        key = f"evaluate_reward.{(workspace.name or '').removeprefix('evaluated-')}"
        labels = labels_of_store(job.subset, inputs.files["test"], Store.open(workspace.output / "test"), key)
        check_sections(job.sections, labels, key)


def _write_pages(workspace: Workspace, report: dict[str, Any], samples: str) -> None:
    pages = {
        "audit.json": json.dumps(report, indent=1, sort_keys=True) + "\n",
        "audit.html": audit_page(report),
        "samples.html": samples,
    }
    for name, text in pages.items():
        (workspace.output / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        workspace.journal.artifact(workspace.output / name, f"{report['dataset']}-{name}")
