"""Run the commands fetch and prepare with a tokenizer of bytes: rows in, token stores and an audit out."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from conftest import ROOT
from manifests import bare
from prefdag.cli.main import main

SHARED = ROOT.parent / "shared/data"
ABSENT = "../shared/data does not exist"
PREPARE: dict[str, Any] = {
    "adapter": "pairs",
    "template": "plain",
    "bos": True,
    "end_of_turn": "eos",
    "over_long": "drop",
    "max_prompt_tokens": 400,
    "max_response_tokens": 400,
    "validation_fraction": 0.0,
    "test_fraction": 0.0,
}
UNLIMITED = {"max_prompt_tokens": 10**6, "max_response_tokens": 10**6}


def byte_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: every byte is a token, and so is each special text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<b>", "<e>", *special]
    trainer = trainers.BpeTrainer(vocab_size=258 + len(special), special_tokens=names, initial_alphabet=alphabet)
    inner.train_from_iterator([], trainer)
    rest = {"additional_special_tokens": list(special)} if special else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<b>", eos_token="<e>", **rest)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fetch(folder: Path, data: dict[str, Any], **more: Any) -> int:
    """Fetch rows into `folder`/out/fetch/data; returns the exit code."""
    output = folder / "out/fetch/data/manifest.json"
    return main(["fetch", "--config", json.dumps({"data": data, **more}), "--output", str(output)])


def prepare(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    dataset: str = "comparisons",
    inputs: dict[str, Path] | None = None,
    **changes: Any,
) -> tuple[int, Path]:
    """Prepare what was fetched into `folder`; returns the exit code and the dataset's folder."""
    at = folder / "out/fetch/tokenizer"
    if not at.exists():
        (at / "tokenizer").mkdir(parents=True)
        (tokenizer or byte_tokenizer()).save_pretrained(at / "tokenizer")
        (at / "manifest.json").write_text(bare("fetch"))
    output = folder / f"out/prepare/{dataset}/manifest.json"
    config = json.dumps({"prepare": {**PREPARE, **changes}, "dataset": dataset})
    command = ["prepare", "--config", config, "--rows", str(folder / "out/fetch/data/manifest.json")]
    for name, path in (inputs or {}).items():
        command += [f"--{name}", str(path)]
    return main([*command, "--tokenizer", str(at / "manifest.json"), "--output", str(output)]), output.parent


def audit(folder: Path, split: str = "train") -> dict[str, Any]:
    """The audit of one split of a prepared dataset."""
    return json.loads((folder / "audit.json").read_text())["splits"][split]
