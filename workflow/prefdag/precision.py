"""In what precision products are computed."""

import torch
from torch import Tensor


def precision(given: Tensor) -> torch.dtype:
    """That of autocast where it is on for the tensor's device, else the tensor's own."""
    device = given.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else given.dtype
