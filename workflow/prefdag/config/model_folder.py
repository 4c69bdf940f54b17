"""Say why a model cannot be used, from its small files alone: no weights are read and transformers is not imported."""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Kind = Literal["causal", "sequence classification"]
ADAPTER = "adapter_config.json"
# transformers' names of architectures that GGUF names otherwise
GGUF_NAMES = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2"}


def mistake_of(files: Mapping[str, Path], kind: Kind, resize: bool = False) -> str | None:
    """Return what is wrong with a model, as the rest of a sentence that starts with its source; None if nothing is.

    Args:
        files: its small files by name, as a folder or a repository holds them.
        kind: what the suite uses it as.
        resize: whether tokens without a row of the embeddings get one.
    """
    if "config.json" not in files:
        if ADAPTER in files:
            if kind == "causal":
                return " is an adapter, and its base is not here; state it as `model.base`: a folder or hub:owner/name"
            return " is an adapter without its base model; merge them (peft's merge_and_unload) and name that folder"
        if any(name.endswith(".gguf") for name in files):
            return " is a folder; name the .gguf file in it"
        return " holds no config.json; name a model folder"
    if ADAPTER in files:
        stated = ", or state the adapter's base as `model.base`" if kind == "causal" else ""
        return (
            f" holds a whole model and an adapter ({ADAPTER}); name a folder that holds only the one you mean{stated}"
        )
    try:
        config = json.loads(files["config.json"].read_text(encoding="utf-8"))
        architecture = config.get("model_type")
    except (ValueError, AttributeError, RecursionError):
        return ": its config.json is not valid; download it again"
    mistake = _unsuitable(config, architecture, kind) or (None if resize else without_row(_tokens(files), config, kind))
    return mistake and f": {mistake}"


def _unsuitable(config: dict[str, Any], architecture: Any, kind: Kind) -> str | None:
    """Return why a config.json names no model that can be trained here; None if it does."""
    if architecture is None:
        return "its config.json states no model_type; name the folder of a transformers model"
    known = _architectures(kind)
    if known and architecture not in known:
        if config.get("auto_map"):
            return f"its model_type {architecture!r} needs Python code of its own (auto_map), which is never run here"
        wanted = "causal language model" if kind == "causal" else "classifier of texts"
        return f"its model_type {architecture!r} is no {wanted} of transformers; name another model"
    return refused_setting(config)


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Return the positions that a model was made for, as its config.json states them; None if it does not."""
    sizes = (config.get(key) for key in ("max_position_embeddings", "n_positions"))
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def refused_setting(config: Mapping[str, Any]) -> str | None:
    """Return the setting of a model's config that no training here can follow; None if there is none."""
    text = config.get("text_config") or {}
    if quantised := config.get("quantization_config") or text.get("quantization_config"):
        method = quantised.get("quant_method") or "no method stated"
        return f"its weights are quantised ({method}), which cannot be trained; name the model in 16 or 32 bits"
    if config.get("output_router_logits") or text.get("output_router_logits"):
        return "its config adds a router loss (output_router_logits), which no loss here has; set it to false"
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind_of_scaling = scaling.get("rope_type", scaling.get("type"))
    if kind_of_scaling in ("dynamic", "longrope", "su"):
        return f"its {kind_of_scaling} rotary scaling depends on what shares a batch; use a model without it"
    return None


def without_row(tokens: Mapping[str, int], config: Mapping[str, Any], kind: Kind = "causal") -> str | None:
    """Return which token has no row in the embeddings; None if each has one, or the config does not say."""
    rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    beyond = {token: number for token, number in tokens.items() if rows is not None and number >= rows}
    if not beyond:
        return None
    token, number = min(beyond.items(), key=lambda item: item[1])
    resize = "set model.resize to true, which adds rows, or " if kind == "causal" else ""
    return (
        f"its tokenizer has the token {token!r} of id {number}, its embeddings have {rows} rows; {resize}take the "
        "tokenizer that belongs to the model"
    )


def _tokens(files: Mapping[str, Path]) -> dict[str, int]:
    """Return the tokens and their ids that the small files state; a sentencepiece model is not read."""
    tokens: dict[str, int] = {}
    try:
        if "tokenizer.json" in files:
            content = json.loads(files["tokenizer.json"].read_text(encoding="utf-8"))
            vocabulary = (content.get("model") or {}).get("vocab") or {}
            if isinstance(vocabulary, list):  # Unigram: pairs of token and score
                vocabulary = {str(entry[0]): number for number, entry in enumerate(vocabulary)}
            tokens = {**vocabulary, **{one["content"]: one["id"] for one in content.get("added_tokens") or ()}}
        else:
            for name in ("vocab.json", "added_tokens.json"):
                if name in files:
                    tokens |= json.loads(files[name].read_text(encoding="utf-8"))
        if "tokenizer_config.json" in files:
            added = json.loads(files["tokenizer_config.json"].read_text(encoding="utf-8")).get("added_tokens_decoder")
            tokens |= {one["content"]: int(number) for number, one in (added or {}).items()}
    except (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError):
        return {}  # `prepare` says that the tokenizer cannot be loaded
    return {token: number for token, number in tokens.items() if isinstance(number, int)}


def _architectures(kind: Kind) -> frozenset[str]:
    """Return the model types that transformers can load."""
    name = "MODEL_FOR_CAUSAL_LM" if kind == "causal" else "MODEL_FOR_SEQUENCE_CLASSIFICATION"
    entries = _table("models/auto/modeling_auto.py", rf"^{name}_MAPPING_NAMES = OrderedDict\($(.*?)^\)$")
    return frozenset(re.findall(r'\(\s*"([\w-]+)",', entries))


def models_of_gguf() -> frozenset[str]:
    """Return the architectures, as GGUF names them, that transformers can read as causal language models."""
    names = re.findall(
        r'^    "([\w-]+)": \{', _table("integrations/ggml.py", r"^GGUF_CONFIG_MAPPING = \{$(.*?)^\}$"), re.M
    )
    causal = _architectures("causal")
    return frozenset(GGUF_NAMES.get(name, name) for name in names if {name, f"{name}_text"} & causal)


def _table(module: str, pattern: str) -> str:
    """Return a table of transformers, read from its text: an import would take seconds."""
    package = importlib.util.find_spec("transformers")
    path = Path(str(package and package.origin)).parent / module
    entries = re.search(pattern, path.read_text(encoding="utf-8"), re.M | re.S) if path.is_file() else None
    return entries[1] if entries else ""
