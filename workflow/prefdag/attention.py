"""Attention over segments, registered with transformers so that a Hub architecture needs no patching.

`model(..., segments=...)` reaches this function through the keyword arguments of every attention layer.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from prefdag.errors import UserError
from prefdag.segments import Segments

NAME = "prefdag_segments"
SUPPORTED = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2")


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of query [R, H, L, D] over key and value [R, H / groups, L, D] under the segments' mask.

    Dropout is off throughout prefdag, so the rate that a model's config states is not read.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=segments.mask, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def check_supported(model_type: str, where: str) -> None:
    """Refuse, by name, architectures whose masks depend on more than causality.

    Raises `UserError` for a model type that has not been proved equal to the padded path. A sliding window is not
    part of our mask: `check_window` keeps comparisons shorter.
    """
    if model_type not in SUPPORTED:
        raise UserError(f"{where}: architecture {model_type!r} is not supported; supported are {', '.join(SUPPORTED)}")


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # our mask comes with the segments
