"""Attention over segments, registered with transformers so that a Hub architecture needs no patching.

`model(..., segments=...)` reaches this function through the keyword arguments of every attention layer.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface

from prefdag.errors import UserError
from prefdag.models.attention.tiled import attend_tiled, is_faster
from prefdag.models.attention.varlen import attend_varlen
from prefdag.models.ops.device import precision
from prefdag.models.packing import Segments

NAME = "prefdag_segments"
SUPPORTED = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2")
VARIABLE = "PREFDAG_ATTENTION"
HALVES = (torch.bfloat16, torch.float16)
Lowering = Callable[[Tensor, Tensor, Tensor, Segments, float | None], Tensor]


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
    dtype = precision(query)
    match lowering(query.device, dtype):
        case "tiled":
            return tiled_lowering(query, key, value, segments, scaling), None
        case "masked":
            return masked_lowering(query, key, value, segments, scaling), None
    query, key, value = (part.to(dtype) for part in (query, key, value))  # autocast knows the masked form alone
    check(query, key, value, segments, scaling)
    return varlen_lowering(query, key, value, segments, scaling), None


def lowering(device: torch.device, dtype: torch.dtype) -> str:
    """How attention is computed there: "apart" in half precision on CUDA, "tiled" on a CPU in others (long rows), else
    "masked".

    PREFDAG_ATTENTION=masked has it masked everywhere. Raises `UserError` for another value.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "masked"):
        raise UserError(f"{VARIABLE}: expected masked or nothing, got {asked!r}")
    ways = {("cpu", False): "tiled", ("cuda", True): "apart"}
    return "masked" if asked else ways.get((device.type, dtype in HALVES), "masked")


def tiled_lowering(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Tiles of queries over what each may see, where that pays, else `masked_lowering`: [R, L, H, D]."""
    if not is_faster(query, segments):
        return masked_lowering(query, key, value, segments, scale)
    key, value = _for_all(query.shape[1], key, value)
    return attend_tiled(query, key, value, segments.sequences, scale)


def _for_all(heads: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of grouped heads [R, H / groups, L, D], once for each head: [R, H, L, D]."""
    groups = heads // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)


def masked_lowering(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Rows under a boolean mask: [R, L, H, D]."""
    key, value = _for_all(query.shape[1], key, value)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=segments.mask, scale=scale)
    return out.transpose(1, 2).contiguous()


def varlen_lowering(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Every response apart, without a mask: [R, L, H, D]."""
    return attend_varlen(query, key, value, segments.apart, scale)


_checked: set[tuple[object, ...]] = set()


def check(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> None:
    """Compare `varlen_lowering` with `masked_lowering`, once per process, device, type and shape of heads.

    Of the outputs and all three gradients, the error against float32 may be four times that of `masked_lowering` in
    the type given: parts of a prompt's gradient are rounded before they are added. Raises `UserError` where it is more:
    a kernel may have its causal diagonal elsewhere.
    """
    kind = (query.device, query.dtype, *query.shape[1::2], key.shape[1])
    if kind in _checked:
        return
    given = [part.detach() for part in (query, key, value)]
    truth = _followed(masked_lowering, [part.float() for part in given], segments, scale)
    plain, fast = (_followed(way, given, segments, scale) for way in (masked_lowering, varlen_lowering))
    for name, true, one, other in zip(("output", "query", "key", "value"), truth, plain, fast, strict=True):
        error, allowed = (other - true).norm().item(), 4 * (one - true).norm().item() + 1e-6 * true.norm().item()
        if not error <= allowed:
            raise UserError(
                f"attention: torch {torch.__version__}'s kernel for sequences is off by {error:.2g} in the {name}'s "
                f"{'values' if name == 'output' else 'gradient'} ({allowed:.2g} allowed); set {VARIABLE}=masked"
            )
    _checked.add(kind)


def _followed(way: Lowering, given: list[Tensor], segments: Segments, scale: float | None) -> list[Tensor]:
    """The output at real tokens and the gradients of a weighted sum of it, in float32.

    What is kept on the way is nobody's to count (`recompute`).
    """
    unseen = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad(), torch.autocast(given[0].device.type, enabled=False), unseen:
        query, key, value = leaves = [part.clone().requires_grad_() for part in given]
        out = way(query, key, value, segments, scale).float()[segments.comparison >= 0]
        weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
        gradients = torch.autograd.grad((out * weights).sum(), leaves)
    return [out.detach(), *(gradient.float() for gradient in gradients)]


def check_supported(model_type: str, where: str) -> None:
    """Refuse, by name, architectures whose masks depend on more than causality.

    Raises `UserError` for a model type that has not been proved equal to the padded path. A sliding window is not
    part of our mask: `check_window` keeps comparisons shorter.
    """
    if model_type not in SUPPORTED:
        raise UserError(f"{where}: architecture {model_type!r} is not supported; supported are {', '.join(SUPPORTED)}")


AttentionInterface.register(NAME, segment_attention)
# No mask is registered, and so none is asked for: ours comes with the segments.
