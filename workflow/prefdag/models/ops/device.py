"""Tensors on their way to a device, while the process goes on."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`: CUDA's later work waits for it, the process does not."""
    if device.type == "cuda":
        assert tensor.device.type == "cpu"
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def precision(given: Tensor) -> torch.dtype:
    """That of autocast where it is on for the tensor's device, else the tensor's own."""
    device = given.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else given.dtype
