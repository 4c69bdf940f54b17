"""Train a small base model from scratch: a byte-level BPE tokenizer and a language model on whole documents."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefdag.config.adapters import adapter_files
from prefdag.config.model import Architectural
from prefdag.config.prepare import HeldOut
from prefdag.config.sections.pretrain import Pretrain
from prefdag.data.adapters.registry import iter_documents
from prefdag.data.token_store import Store, StoreWriter
from prefdag.data.tokenization import load_tokenizer
from prefdag.data.unseen import iter_read
from prefdag.distributed.collectives import all_gather_objects
from prefdag.distributed.ranks import is_first
from prefdag.models.loading import build, save, set_up
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.training.checkpoint import Checkpoint
from prefdag.training.loop import total_steps, train
from prefdag.training.records import record_steps
from prefdag.training.supervised_task import mean_nll, supervised_task

BOS, EOS = "<|bos|>", "<|eos|>"
ENCODED_AT_ONCE = 1000


class Job(Section):
    adapter: str
    scratch: Architectural
    pretrain: Pretrain
    held_out: HeldOut | None = None

    def user_files(self) -> tuple[Path, ...]:
        return adapter_files(self.adapter)


def run(job: Job, workspace: Workspace, *, data: Path, tokenizer: Path | None = None) -> dict[str, Any]:
    """Pre-train on the documents of the training split: prompt and best response of every row.

    Args:
        job: adapter, architecture and the section `pretrain`.
        workspace: output folder, scratch folder and journal of the job.
        data: manifest of the rows.
        tokenizer: manifest of a fetched tokenizer; without it one is trained on the documents.

    Returns:
        The results of the job.
    """
    settings = job.pretrain
    device = set_up(settings.threads, settings.precision)
    folder = workspace.output / "tokenizer" if tokenizer is None else tokenizer.parent / "tokenizer"
    if tokenizer is None:
        train_tokenizer(_documents(job, data.parent), job.scratch.vocab_size).save_pretrained(folder)
    vocabulary = load_tokenizer(folder)
    stores = {split: _store(job, workspace, data.parent, vocabulary, split) for split in ("train", "validation")}
    model = build(job.scratch, len(vocabulary), vocabulary.bos_token_id, vocabulary.eos_token_id, settings.seed)
    torch.nn.Module.to(model, device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if is_first():
        print(f"pretrain: {num_parameters:,} parameters, {len(vocabulary):,} tokens", flush=True)
    store = stores["train"]
    steps = train(model.train(), store, settings, supervised_task(model, store), Checkpoint(workspace.resume))
    record_steps(steps, total_steps(store, settings), workspace.journal, workspace.output / "curves.csv", "pretrain")
    save(model, folder, workspace.output / "model")
    workspace.log_model_output("base")
    facts: dict[str, float] = {"parameters": num_parameters, "vocabulary": len(vocabulary), "documents": len(store)}
    if len(stores["validation"]):
        facts["nll"] = mean_nll(model.eval(), stores["validation"], settings.tokens_per_batch)
    workspace.results(facts)
    return facts


def _documents(job: Job, folder: Path, split: str = "train") -> Iterator[str]:
    if job.held_out is not None and split == "train":
        return iter_read(job.adapter, folder, job.held_out)
    return iter_documents(job.adapter, folder, split)


def train_tokenizer(documents: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (Radford et al. 2019) with one token for the beginning and one for the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def _store(job: Job, workspace: Workspace, folder: Path, tokenizer: Any, split: str) -> Store:
    """Store documents, each between BOS and EOS, as comparisons of one response in the scratch folder.

    A document longer than the limit continues in further blocks, each after the last token of the block before, so no
    token is lost. Of several processes the first one writes.
    """
    if is_first():
        _write_store(job, workspace, folder, tokenizer, split)
    all_gather_objects("written")
    return Store.open(workspace.resume / split)


def _write_store(job: Job, workspace: Workspace, folder: Path, tokenizer: Any, split: str) -> None:
    size = job.pretrain.max_tokens - 1
    documents = _documents(job, folder, split)
    with StoreWriter(workspace.resume / split, num_responses=1, scored=False) as writer:
        row = 0
        while batch := list(itertools.islice(documents, ENCODED_AT_ONCE)):
            for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
                whole = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
                for begin in range(0, len(whole) - 1, size):
                    writer.add([whole[begin]], [whole[begin + 1 : begin + 1 + size]], row=row, prompt=row)
                row += 1
