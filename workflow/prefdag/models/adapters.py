"""Low-rank adapters by peft: attach them to a model, and save them in peft's format.

A policy trained with an adapter is a folder with the adapter alone. `adapter_config.json` names its base: the path of
the base's folder below a folder that holds both, and as `revision` the sha256 of the base's weights. Loading
such a folder merges the adapter into the base, so a training on top of it starts from merged weights.
"""

import copy
import json
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefdag.config.sections.adapter import Adapter
from prefdag.errors import UserError
from prefdag.models.merging import CONFIG, PREFIX, WEIGHTS, digest_of
from prefdag.models.ops.device import at_least_float32
from prefdag.models.ops.seeded_dropout import seed_dropout
from prefdag.seeds import named_seed

HEAD = "score"
NAME = "default"  # of the adapter in peft's modules
ATTRIBUTE = "prefdag_adapter_base"


@dataclass(frozen=True)
class Base:
    """The frozen model of an attached adapter: its folder, and the sha256 of its weights."""

    folder: Path
    digest: str


def attach(model: PreTrainedModel, settings: Adapter, seed: int) -> PreTrainedModel:
    """Freeze a model in place and give it a new adapter that changes nothing yet. A head `score` is trained as well.

    Args:
        model: a policy or a scorer.
        settings: of the adapter.
        seed: of its initial weights and its dropout.

    Returns:
        The model without the adapter: modules of its own on the same weights.

    Raises:
        UserError: the model has none of the named layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = _targets(model, settings)
    head = getattr(model, HEAD, None)
    _round(model, settings.base)
    base = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=names,
        exclude_modules=None if head is None else [HEAD],
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.base_model.modules()),
        task_type="CAUSAL_LM" if head is None else "SEQ_CLS",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "adapter"))
        inject_adapter_in_model(config, model, NAME)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = at_least_float32(parameter.data)
        elif name.startswith(f"{HEAD}."):
            parameter.requires_grad_(True)
    if settings.dropout:
        seed_dropout(model, settings.dropout, seed)
    model.eval()
    return base


def _targets(model: PreTrainedModel, settings: Adapter) -> list[str]:
    """Return the last names of the layers that get an adapter."""
    linear = {
        name.rpartition(".")[2]
        for name, module in model.base_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    if settings.target == "all-linear":
        return sorted(linear)
    for name in settings.target:
        if name not in linear:
            raise UserError(
                f"adapter.target: the model has no linear layer {name} in its blocks; name some of "
                f"{', '.join(sorted(linear))}, or all-linear"
            )
    return sorted(settings.target)


def _round(model: PreTrainedModel, base: str) -> None:
    """Hold the weights in another type, but not those of a head that is trained."""
    if base == "nf4":
        _quantise(model)
    if base != "float32":
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and not name.startswith(f"{HEAD}."):
                parameter.data = parameter.data.to(torch.bfloat16)


def _quantise(model: Any) -> None:
    """Hold the linear layers of a model's blocks as normal floats of 4 bits, in place (Dettmers et al. 2023, QLoRA).

    Raises:
        UserError: there is no CUDA device, no bitsandbytes, or the model's layers are no `nn.Linear`.
    """
    if not torch.cuda.is_available():
        raise UserError("adapter.base: nf4 needs a CUDA device, and there is none; take bfloat16 or float32")
    try:
        library = import_module("bitsandbytes")
    except ImportError as error:
        raise UserError(
            f"adapter.base: nf4 needs bitsandbytes, which cannot be imported ({error}); install it, or take bfloat16"
        ) from None
    for parent in list(model.base_model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Conv1D):
                raise UserError(f"adapter.base: nf4 holds nn.Linear layers, and {name} is none; take bfloat16")
            if type(layer) is nn.Linear:
                setattr(parent, name, _in_four_bits(layer, library))
    model.is_loaded_in_4bit = True  # peft then attaches its own layers for such weights


def _in_four_bits(layer: nn.Linear, library: Any) -> nn.Module:
    """Return a layer with the same weights, rounded: quantised when it is moved to the device."""
    device, has_bias = layer.weight.device, layer.bias is not None
    quantised = library.nn.Linear4bit(
        layer.in_features, layer.out_features, has_bias, torch.bfloat16, compress_statistics=True, quant_type="nf4"
    )
    quantised.weight = library.nn.Params4bit(
        layer.weight.data.cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4"
    )
    if has_bias:
        quantised.bias = nn.Parameter(layer.bias.data.to(torch.bfloat16), requires_grad=False)
    moved: nn.Module = quantised.to(device)
    return moved


def is_attached(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def set_base(model: PreTrainedModel, folder: Path) -> None:
    """State the folder that a model with an adapter was loaded from, for `save_adapter`."""
    object.__setattr__(model, ATTRIBUTE, Base(folder, digest_of(folder)))


def save_adapter(model: Any, state: dict[str, Tensor], folder: Path) -> None:
    """Write an attached adapter in peft's format, and the model's config.

    Args:
        model: the model, with its base as `set_base` states it.
        state: the model's state, not sharded.
        folder: where to write.
    """
    from peft import get_peft_model_state_dict

    base: Base = getattr(model, ATTRIBUTE)
    config = copy.copy(model.peft_config[NAME])
    parts = get_peft_model_state_dict(model, state, NAME, save_embedding_layers=False)
    if hasattr(model, HEAD):
        parts |= {name: value for name, value in state.items() if name.startswith(f"{HEAD}.")}
        config.modules_to_save = [HEAD]
    above = Path(os.path.commonpath([base.folder.resolve(), folder.resolve()]))
    config.base_model_name_or_path = base.folder.resolve().relative_to(above).as_posix()
    config.revision, config.inference_mode = base.digest, True
    folder.mkdir(parents=True, exist_ok=True)
    save_file({PREFIX + name: value.cpu().contiguous() for name, value in parts.items()}, folder / WEIGHTS)
    # peft's own writer leaves the order of sets to chance.
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    (folder / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True, default=str) + "\n")
    model.config.save_pretrained(folder)


def trained_state(model: nn.Module) -> dict[str, Any]:
    """Return what a training changes of a model: its whole state, or that of an attached adapter and head."""
    state = model.state_dict()
    if not is_attached(model):
        return state
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in state.items() if name in trained}


def load_trained_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Load what `trained_state` returned."""
    wanted = trained_state(model).keys()
    assert wanted == state.keys(), f"{sorted(wanted ^ state.keys())[:1]}"
    model.load_state_dict(state, strict=not is_attached(model))
