"""Saved adapters: find their base, and merge them into it."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from prefdag.errors import UserError
from prefdag.provenance.manifest import combined_digest, sha256_of

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every weight's name in peft's files
SHA256 = 64  # hexadecimal digits


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> Path:
    """Return the folder of the model that a saved adapter changes.

    Raises:
        UserError: there is none, or it holds other weights than the adapter was trained on.
    """
    values = json.loads((folder / CONFIG).read_text())
    name, digest = str(values.get("base_model_name_or_path")), values.get("revision")
    places = (parent / name for parent in folder.resolve().parents)
    base = next((place for place in places if (place / "config.json").is_file()), None)
    if base is None:
        raise UserError(f"{folder}: holds an adapter of {name}, which is in no folder above it; restore it, or rerun")
    if digest_of(base) != digest:
        raise UserError(f"{folder}: holds an adapter of other weights than those of {base}; rerun its stage")
    return base


def digest_of(folder: Path) -> str:
    """Return the sha256 of a model's weights: of an adapter and of its base."""
    digests = [sha256_of(path) for path in sorted(folder.glob("*.safetensors"))]
    if is_adapter(folder):
        digests.append(str(json.loads((folder / CONFIG).read_text()).get("revision")))
    return combined_digest(digests)


def merge(model: PreTrainedModel, folder: Path, name: str = "") -> PreTrainedModel:
    """Return a model with a saved adapter merged into its weights, all of them to be trained.

    Args:
        model: the adapter's base; its weights are changed in place.
        folder: with the adapter, of any of peft's kinds that can be merged.
        name: of the adapter in errors; default: the folder.

    Raises:
        UserError: the adapter is of another model, or cannot be read or merged.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.task_type = None  # a policy's adapter is merged into the trunk of a scorer too
        config.inference_mode, config.base_model_name_or_path = True, None  # peft would ask the Hub about it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that are missing, which are compared below
            adapted = PeftModel.from_pretrained(model, folder, config=config)
        saved = set(load_file(folder / WEIGHTS))
        wanted = {
            PREFIX + name.removeprefix(PREFIX)
            for name in get_peft_model_state_dict(adapted, save_embedding_layers=False)
        }
        if missing := sorted(wanted ^ saved):
            raise ValueError(f"{missing[0]} is in one of them alone")
        merged: Any = adapted.merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{name or folder}: its adapter does not fit the model {model.config.name_or_path or 'of model.base'} "
            f"({reason}); take the adapter's own base model"
        ) from None
    merged.requires_grad_(True)
    return merged.eval()


def merge_folders(base: Path, adapter: Path, target: Path, names: tuple[str, str]) -> None:
    """Write the float32 weights and the config of a base model with an adapter from elsewhere merged into it.

    Args:
        base: folder of a whole model.
        adapter: folder with `adapter_config.json` and `adapter_model.safetensors`.
        target: folder to write to.
        names: of the base and of the adapter, for errors.

    Raises:
        UserError: the adapter is of another model or cannot be merged, or the base is not complete.
    """
    stated = str(json.loads((adapter / CONFIG).read_text(encoding="utf-8")).get("revision"))
    if len(stated) == SHA256 and stated != digest_of(base):
        raise UserError(
            f"model.base: {names[0]} holds other weights than those that the adapter {names[1]} was trained on (their "
            f"sha256 is not {stated[:12]}..., which it states); name its own base"
        )
    loader: Any = AutoModelForCausalLM
    try:
        model, report = loader.from_pretrained(
            base,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"model.base: cannot load a model from {names[0]} ({reason}); name a complete model") from None
    if lacking := sorted(report["missing_keys"]):
        raise UserError(f"model.base: the weights of {names[0]} lack {lacking[0]}; name a complete model")
    model.config.name_or_path = names[0]
    merged = merge(model, adapter, f"model.source: {names[1]}")
    merged.generation_config = GenerationConfig()  # the base's may not be valid, and its file is copied as it is
    merged.save_pretrained(target)
    (target / "generation_config.json").unlink()
