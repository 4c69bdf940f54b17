"""Where tensors are computed, and in which precision."""

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16"]
_state: dict[str, Precision | None] = {"precision": None}


def use_precision(precision: Precision | None) -> None:
    """Set the process's arithmetic of models. None: bf16 on CUDA, float32 elsewhere. Weights are always float32."""
    _state["precision"] = precision


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the type in which `autocast` computes products on a device."""
    precision = _state["precision"] or ("bfloat16" if device.type == "cuda" else "float32")
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Return a context of the process's precision over float32 weights; for float32 it changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute_dtype(device) == torch.bfloat16)


def precision(tensor: Tensor) -> torch.dtype:
    """Return autocast's dtype if it is enabled for the device of a tensor of any shape, else the tensor's."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def at_least_float32(values: Tensor) -> Tensor:
    """Return half-precision values of any shape as float32, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor of any shape to `device`; on CUDA asynchronously, from pinned memory."""
    if device.type == "cuda":
        assert tensor.device.type == "cpu"
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
