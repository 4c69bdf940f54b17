"""A model that is an adapter from elsewhere: where its base is, and what is wrong with its files."""

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from prefdag.config.model import Model
from prefdag.config.model_folder import ADAPTER, mistake_of

OF_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")


def base_of_model(model: Model) -> str | None:
    """Return the source of the base if a model's source is an adapter: the stated one, or the local folder it names."""
    if model.base is not None:
        return model.base
    config = Path(model.source) / ADAPTER
    if (Path(model.source) / "config.json").is_file():
        return None
    base = named_base(config) if config.is_file() else None
    return base if base and (Path(base) / "config.json").is_file() else None


def named_base(config: Path) -> str | None:
    """Return the base that an adapter's config names; None if it names none."""
    try:
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError):
        return None
    return base if isinstance(base, str) else None


def adapter_mistake(files: Mapping[str, Path]) -> str | None:
    """Return what is wrong with an adapter's files, as the rest of a sentence that starts with its source."""
    if ADAPTER not in files:
        return f" holds no {ADAPTER}, but model.base is for adapters; remove model.base, or name the adapter's folder"
    try:
        kind = json.loads(files[ADAPTER].read_text(encoding="utf-8")).get("peft_type")
    except (ValueError, AttributeError, RecursionError):
        kind = None
    return None if isinstance(kind, str) else f": its {ADAPTER} is not valid (no peft_type); download it again"


def base_mistake(base: Mapping[str, Path], adapter: Mapping[str, Path], resize: bool) -> str | None:
    """Return what is wrong with an adapter's base, as `mistake_of` does for a model."""
    if ADAPTER in base and "config.json" not in base:
        return " is an adapter too; name the whole model that both change"
    return mistake_of(with_adapters_tokenizer(base, adapter), "causal", resize)


def with_adapters_tokenizer(base: Mapping[str, Path], adapter: Mapping[str, Path]) -> dict[str, Path]:
    """Return a base's files by name, with the adapter's tokenizer in place of the base's if it has one."""
    tokenizer = {name: path for name, path in adapter.items() if _is_of_tokenizer(name)}
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(tokenizer):
        return dict(base)
    return {name: path for name, path in base.items() if not _is_of_tokenizer(name)} | tokenizer


def _is_of_tokenizer(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in OF_TOKENIZER)
