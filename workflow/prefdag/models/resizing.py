"""Give every token of a tokenizer a row in the embeddings and the head of a model."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from prefdag.provenance.manifest import WEIGHTS

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


@torch.no_grad()
def add_rows(folder: Path) -> tuple[int, int]:
    """Add rows to a saved model for the tokens that have none, each the mean of the model's own rows.

    The mean answers every context about as the average token does; a row at random may win over all others.

    Args:
        folder: the model with its tokenizer; its weights and config.json are replaced, in the weights' own dtype.

    Returns:
        The number of rows before and after, equal if every token has a row.

    Reference:
        Hewitt, Initializing New Word Embeddings for Pretrained Language Models, 2021.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    before = int(model.get_input_embeddings().weight.shape[0])
    after = int(max(tokenizer.get_vocab().values())) + 1
    if after <= before:
        return before, before
    model.resize_token_embeddings(after, mean_resizing=False)
    for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
        for values in (layer.weight, getattr(layer, "bias", None)):
            if values is not None:
                values[before:] = values[:before].float().mean(0)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        model.save_pretrained(temporary)
        for path in folder.glob("*.safetensors*"):
            path.unlink()  # a second name of the user's file, whose bytes must stay
        for path in Path(temporary).iterdir():
            if path.name == "config.json" or WEIGHTS in path.name:
                path.replace(folder / path.name)
    return before, after
