"""Where tensors are computed, and in which precision."""

import torch
from torch import Tensor


def autocast(device: torch.device) -> torch.autocast:
    """Return a context of bf16 over float32 master weights on CUDA; elsewhere it changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


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
