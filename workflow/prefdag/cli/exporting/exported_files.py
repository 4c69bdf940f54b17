"""Write the weights and the configs of an exported model."""

import json
import re
from pathlib import Path
from typing import Any

from prefdag.cli.exporting.prompt_format import PromptFormat, generation_config
from prefdag.data.tokenization import load_tokenizer

SIZE = re.compile(r"\d+(KB|MB|GB)")
GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"


def write_configs(form: PromptFormat, folder: Path, max_new_tokens: int | None) -> None:
    """State the special tokens in config.json, and how to generate in generation_config.json.

    Args:
        form: how the model reads prompts.
        folder: of the export, with its tokenizer.
        max_new_tokens: limit of a response; None for a reward model, which generates nothing.
    """
    tokens = generation_config(form, max_new_tokens or 0)
    named = {key: value for key, value in tokens.items() if key.endswith("_token_id")}
    (folder / GENERATION).unlink(missing_ok=True)
    if max_new_tokens is None:
        tokenizer = load_tokenizer(folder)
        named["pad_token_id"] = tokenizer.pad_token_id
        if tokenizer.pad_token_id >= form.rows:
            _add_rows(folder, tokenizer.pad_token_id + 1)
    else:
        _update(folder / GENERATION, tokens)
    _update(folder / "config.json", named)


def _add_rows(folder: Path, rows: int) -> None:
    """Give a reward model embeddings of zeros for a padding token that its vocabulary lacks."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype="auto", local_files_only=True, trust_remote_code=False
    )
    before = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.get_input_embeddings().weight.data[before:] = 0
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink(missing_ok=True)
    model.save_pretrained(folder)


def write_weights(folder: Path, dtype: str | None, max_shard_size: str) -> None:
    """Round the weights of a folder to a dtype, and split them into files of at most this size."""
    import torch
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import load_file

    paths = sorted(folder.glob("*.safetensors"))
    if dtype is None and all(path.stat().st_size <= _bytes(max_shard_size) for path in paths):
        return
    tensors: dict[str, Any] = {}
    for path in paths:
        for name, tensor in load_file(path).items():
            is_cast = dtype is not None and tensor.is_floating_point()
            tensors[name] = tensor.to(getattr(torch, str(dtype))) if is_cast else tensor
        path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})
    if dtype is not None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _update(folder / "config.json", {"torch_dtype" if "torch_dtype" in config else "dtype": dtype})


def _bytes(size: str) -> int:
    return int(size[:-2]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[size[-2:]]


def _update(path: Path, values: dict[str, Any]) -> None:
    """Set keys of a JSON file, which may be missing."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **values}, indent=2) + "\n", encoding="utf-8")
