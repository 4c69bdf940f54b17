"""Build, load and save models; set up the process to run them."""

import ctypes
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils import deterministic
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from prefdag.config.model import Architectural
from prefdag.config.model_folder import refused_setting
from prefdag.config.sections.adapter import Adapter
from prefdag.distributed.collectives import join
from prefdag.distributed.fsdp import full_tensor
from prefdag.distributed.ranks import is_first
from prefdag.errors import UserError
from prefdag.models.adapters import attach, is_attached, save_adapter, set_base
from prefdag.models.attention.interface import NAME
from prefdag.models.merging import base_of, is_adapter, merge
from prefdag.models.ops.device import Precision, compute_dtype, use_precision
from prefdag.models.ops.half_linear import use_half_linears
from prefdag.models.proof import attention_of, check_weights, chosen_route, is_proved
from prefdag.models.route import Route, route_of, set_route
from prefdag.os_errors import out_of_memory
from prefdag.seeds import named_seed

logger = logging.getLogger(__name__)
HEAD = "score.weight"
OF_WEIGHTS = ("model", "adapter")  # how names of files of weights begin
ALIGNMENT = 64  # bytes

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def set_up(threads: int, precision: Precision | None = None) -> torch.device:
    """Prepare the process to run models, and return its device.

    Joins the other ranks, sets the number of threads, the precision and deterministic kernels, and keeps freed memory
    in the process.

    Args:
        threads: of torch.
        precision: of products; None: bf16 on CUDA, float32 elsewhere.
    """
    join()
    use_precision(precision)
    keep_freed_pages()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode fills new tensors with NaN, 2 to 6 % of a training; nothing here reads uninitialised memory.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_policy(folder: Path, device: torch.device) -> PreTrainedModel:
    """Load a causal language model with float32 weights and attention over segments.

    Raises:
        UserError: for an architecture that is not supported, or a folder without complete weights.
    """
    return _load(AutoModelForCausalLM, folder, device)


def load_scorer(folder: Path, device: torch.device, new_heads: int | None = None) -> PreTrainedModel:
    """Load a reward model: the scalar heads are the linear layer `score`, without bias.

    Args:
        folder: a reward model, or a policy if `new_heads` is given.
        device: where to put it.
        new_heads: number of heads to add to a policy; the caller must initialise their weights.

    Raises:
        UserError: as `load_policy`, and for a reward model without heads.
    """
    if new_heads is None and is_adapter(folder):
        new_heads = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).num_labels
    if new_heads is None:
        model = _load(AutoModelForSequenceClassification, folder, device)
    else:
        model = _load(AutoModelForSequenceClassification, folder, device, may_lack=HEAD, num_labels=new_heads)
    assert isinstance(model.score, nn.Linear) and model.score.bias is None
    return model


def route_of_folder(folder: Path) -> tuple[str, Route]:
    """Return the type of a folder's model and the route that it takes, without its weights.

    Raises:
        UserError: as `load_policy`.
    """
    config = _read_config(folder)
    return str(config.model_type), chosen_route(config, str(folder))


def _read_config(folder: Path) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _not_loaded(folder, error) from None
    _check(config, str(folder))
    return config


def _load(
    kind: Any, folder: Path, device: torch.device, may_lack: str | None = None, **options: Any
) -> PreTrainedModel:
    if is_adapter(folder):
        return merge(_load(kind, base_of(folder), device, may_lack, **options), folder)
    config = _read_config(folder)
    is_new = not is_proved(config)
    route = chosen_route(config, str(folder))
    options |= {"dtype": torch.float32, "attn_implementation": attention_of(route), "local_files_only": True}
    options |= {"trust_remote_code": False}
    options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        model, report = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(folder, error) from None
    # transformers initialises missing weights at random, and only warns.
    lacking = sorted(name for name in report["missing_keys"] if name != may_lack)
    if lacking:
        raise UserError(f"{folder}: its weights lack {lacking[0]} ({len(lacking)} missing); take a complete model")
    without_dropout(model)
    model = model.to(device).eval()
    _align(model)
    _use_precision(model)
    set_route(model, route)
    if route.reason:
        logger.info("%s: %s is computed %s: %s", folder, config.model_type, route, route.reason)
    if is_new and kind is AutoModelForCausalLM:
        check_weights(model, route, str(folder))
    return model


def _use_precision(model: nn.Module) -> None:
    if compute_dtype(torch.device("cpu")) == torch.bfloat16:
        use_half_linears(model)


def add_adapter(model: PreTrainedModel, settings: Adapter | None, seed: int, folder: Path) -> PreTrainedModel:
    """Freeze a loaded model and attach a new adapter to it, if there are settings for one.

    Args:
        model: a policy or a scorer.
        settings: of the adapter; None: the model is left as it is.
        seed: of the adapter's initial weights and its dropout.
        folder: the policy that the model was loaded from, which a saved adapter names as its base.

    Returns:
        The model without an adapter, on the same weights: the model itself if there are no settings.

    Raises:
        UserError: the model has none of the named layers, or cannot be held as `settings.base` says.
    """
    if settings is None:
        return model
    base = attach(model, settings, seed)
    _use_precision(model)
    set_base(model, folder)
    route = chosen_route(model.config, str(folder), settings)
    if route.kind != route_of(model).kind:
        model.set_attn_implementation(attention_of(route))
    set_route(model, route)
    return base


def _align(model: nn.Module) -> None:
    """Move parameters at unaligned addresses of a mapped file to memory aligned as torch allocates it.

    On AMD processors the low bits of MKL's products by a narrow matrix, such as a reward head, depend on the alignment.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()


def _not_loaded(folder: Path, error: Exception) -> Exception:
    """Return an error that names the folder, or the error itself if memory ran out."""
    if out_of_memory(error):
        return error
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{folder}: cannot load a model from it ({first}); give the folder of a complete model")


def _check(config: PretrainedConfig, where: str) -> None:
    if reason := refused_setting(config.to_dict()):
        raise UserError(f"{where}: {reason}")


def without_dropout(model: nn.Module) -> None:
    """Turn off dropout: policy and reference must agree at the first step."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def build(shape: Architectural, vocab_size: int, bos: int, eos: int, seed: int) -> PreTrainedModel:
    """Build a model with random weights.

    Args:
        shape: architecture and sizes, from the suite.
        vocab_size: entries of the vocabulary.
        bos, eos: token ids for the config.
        seed: of the initial weights.
    """
    inner = shape.intermediate_size or 4 * shape.hidden_size
    common = {
        "vocab_size": vocab_size,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "tie_word_embeddings": shape.tie_embeddings,
    }
    if shape.architecture == "gpt2":
        names = {"n_embd": shape.hidden_size, "n_layer": shape.layers, "n_head": shape.heads}
        config = AutoConfig.for_model("gpt2", n_positions=shape.context, n_inner=inner, **names, **common)
    else:
        names = {"hidden_size": shape.hidden_size, "num_hidden_layers": shape.layers}
        names |= {"num_attention_heads": shape.heads, "intermediate_size": inner}
        if shape.architecture in ("llama", "mistral", "qwen2"):
            names["num_key_value_heads"] = shape.key_value_heads or shape.heads
        if shape.architecture == "mistral":
            names["sliding_window"] = shape.context
        config = AutoConfig.for_model(shape.architecture, max_position_embeddings=shape.context, **names, **common)
    torch.manual_seed(named_seed(seed, "initial weights"))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=NAME)
    without_dropout(model)
    _use_precision(model)
    return model.eval()


def save(model: PreTrainedModel, tokenizer: Path, folder: Path) -> None:
    """Write weights (safetensors), config and the tokenizer's files, loadable by `from_pretrained`.

    Every rank must call this, as each may hold a shard; the first one writes.
    """
    state = full_tensor(model.state_dict())
    if not is_first():
        return
    if is_attached(model):
        save_adapter(model, state, folder)
    else:
        model.save_pretrained(folder, state_dict=state)
    for path in tokenizer.iterdir():
        is_of_model = path.name in ("config.json", "generation_config.json") or path.name.startswith(OF_WEIGHTS)
        if path.is_file() and not is_of_model:
            shutil.copy(path, folder / path.name)


def save_merged(model: PreTrainedModel, tokenizer: Path, folder: Path) -> None:
    """Write what `save` does for a model without an adapter: one that is attached is merged into a copy."""
    if not is_attached(model):
        save(model, tokenizer, folder)
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        save(model, tokenizer, Path(name) / "model")
        save(load_policy(Path(name) / "model", torch.device("cpu")), tokenizer, folder)


@contextmanager
def merged_folder(folder: Path) -> Iterator[Path]:
    """Yield a policy's folder, or if it holds an adapter a temporary one with the merged weights."""
    if not is_adapter(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        save(load_policy(folder, torch.device("cpu")), folder, Path(name) / "model")
        yield Path(name) / "model"


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
GROWTH = 64 << 20  # bytes; the least by which the heap grows


def keep_freed_pages() -> None:
    """Make glibc reuse freed memory instead of returning it to the system; no effect with another C library."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, GROWTH)):
        mallopt(option, value)
