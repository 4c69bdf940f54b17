"""Turn a GGUF file into a folder that `from_pretrained` loads: float32 weights, config, tokenizer, chat template."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from prefdag.errors import UserError
from prefdag.os_errors import out_of_memory

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

Progress = Callable[[Any], Iterator[Any]]


def convert(file: Path, target: Path, progress: Progress = iter) -> None:
    """Write the model of a GGUF file, dequantised to float32, with its tokenizer.

    Args:
        file: a file that `gguf_mistake` accepts.
        target: the folder to make.
        progress: wraps the list of tensors (each with `n_elements`) while they are dequantised.

    Raises:
        UserError: transformers cannot read the file, or it lacks weights that the architecture has.
    """
    with _readable(file, progress):
        _save_tokenizer(file, target)
        loader: Any = AutoModelForCausalLM
        loaded, report = loader.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if lacking := sorted(report["missing_keys"]):
            raise UserError(f"{file}: lacks {lacking[0]} ({len(lacking)} missing); take a file of the whole model")
        # A model from GGUF counts as quantised, and is not saved; the same weights in a plain model are.
        config = loaded.config
        del config.quantization_config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = loaded.generation_config
        model.save_pretrained(target)


def convert_small_files(file: Path, target: Path) -> None:
    """Write config and tokenizer of a GGUF file alone. Raises `UserError` if transformers cannot read them."""
    with _readable(file):
        _save_tokenizer(file, target)
        config = AutoConfig.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
        config.save_pretrained(target)


def _save_tokenizer(file: Path, target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
    )
    tokenizer.save_pretrained(target)


@contextmanager
def _readable(file: Path, progress: Progress = iter) -> Iterator[None]:
    """Make transformers read the file once, not for each part of a model, and turn its errors into `UserError`."""
    try:
        with (
            patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
            patch.object(modeling_gguf_pytorch_utils, "tqdm", lambda tensors, **options: progress(tensors)),
        ):
            yield
    except UserError:
        raise
    except Exception as error:  # of transformers and gguf, which raise any kind for a file that they do not expect
        if out_of_memory(error):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{file}: transformers cannot read it ({first}); take another file of this model") from None
