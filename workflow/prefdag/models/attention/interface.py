"""Attention over segments, registered with transformers so that a Hub architecture needs no patching.

`model(..., segments=...)` reaches this function through the keyword arguments of every attention layer.

Shapes: R rows of L tokens; H heads of D, keys and values in H / groups heads.
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
from prefdag.models.ops.device import at_least_float32, precision
from prefdag.models.ops.varlen import attend_varlen
from prefdag.models.packing import Segments

NAME = "prefdag_segments"
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
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend under the segments' mask; the signature is that of transformers' attention functions.

    Dropout is off everywhere in prefdag, so the config's dropout rate is ignored.

    Args:
        query: [R, H, L, D].
        key, value: [R, H / groups, L, D].
        segments: which token may see which.
        scaling: factor on the scores; None: D^-0.5.
        sliding_window: positions that a token sees, its own included; None: all.
        softcap: scores s become softcap * tanh(s / softcap) (Gemma 2).
        s_aux: [H], a score that takes probability and has no value (gpt-oss).

    Returns:
        The output [R, L, H, D], and None for the attention weights.
    """
    if softcap is not None or s_aux is not None:
        mask = segments.windowed(sliding_window)
        return attend_capped(query, key, value, mask, scaling, softcap, s_aux), None
    if sliding_window is not None and segments.reach > sliding_window:
        return masked_lowering(query, key, value, segments, scaling, sliding_window), None
    dtype = precision(query)
    match lowering(query.device, dtype):
        case "tiled":
            return tiled_lowering(query, key, value, segments, scaling), None
        case "masked":
            return masked_lowering(query, key, value, segments, scaling), None
    query, key, value = (part.to(dtype) for part in (query, key, value))  # autocast does not cast a varlen kernel's
    check(query, key, value, segments, scaling)
    return varlen_lowering(query, key, value, segments, scaling), None


def lowering(device: torch.device, dtype: torch.dtype) -> str:
    """Return how attention is computed.

    "apart" (a sequence per response, by a varlen kernel) for half precision on CUDA, "tiled" (on long rows) on a CPU,
    else "masked". PREFDAG_ATTENTION=masked forces "masked". The names are part of the reference cache's
    key. Raises `UserError` for another value of the variable.
    """
    setting = os.environ.get(VARIABLE, "")
    if setting not in ("", "masked"):
        raise UserError(f"{VARIABLE}: expected `masked` or nothing, got {setting!r}")
    lowerings = {("cpu", False): "tiled", ("cpu", True): "tiled", ("cuda", True): "apart"}
    return "masked" if setting else lowerings.get((device.type, dtype in HALVES), "masked")


def tiled_lowering(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Attend in tiles if that is faster, else under a mask: [R, L, H, D]."""
    if not is_faster(query, segments):
        return masked_lowering(query, key, value, segments, scale)
    key, value = _repeat_groups(query.shape[1], key, value)
    # Small products in bf16 save a quarter of the tiles' time, and would round the scores.
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (at_least_float32(part) for part in (query, key, value))
        return attend_tiled(query, key, value, segments.sequences, scale)


def _repeat_groups(heads: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat grouped keys and values once per query head: [R, H / groups, L, D] -> [R, H, L, D]."""
    groups = heads // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)


def masked_lowering(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None, window: int | None = None
) -> Tensor:
    """Attend under a boolean mask of R x L x L.

    Args:
        query: [R, H, L, D].
        key, value: [R, H / groups, L, D].
        segments: which token may see which.
        scale: factor on the scores; None: D^-0.5.
        window: positions that a token sees, its own included; None: all.

    Returns:
        [R, L, H, D].
    """
    key, value = _repeat_groups(query.shape[1], key, value)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=segments.windowed(window), scale=scale)
    return out.transpose(1, 2).contiguous()


def attend_capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with soft-capped scores or attention sinks, which no kernel here knows.

    Args:
        query: [R, H, L, D].
        key, value: [R, H / groups, S, D].
        mask: which keys a query sees, [R, 1, L, S]; None: all.
        scale: factor on the scores; None: D^-0.5.
        softcap: bound of the scores.
        sinks: [H], the score of a key without value.

    Returns:
        [R, L, H, D].

    Reference: Gemma Team 2024, section 2 (soft-capping).
    """
    key, value = _repeat_groups(query.shape[1], key, value)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        # Padding sees itself: a softmax over nothing is NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        columns = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
        scores = torch.cat([scores, columns], -1)
    probs = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return (probs[..., : value.shape[2]] @ value).transpose(1, 2).contiguous()


def varlen_lowering(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Attend within sequences, without a mask: [R, L, H, D]."""
    return attend_varlen(query, key, value, segments.varlen_layout, scale)


_checked: set[tuple[object, ...]] = set()


def check(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> None:
    """Compare `varlen_lowering` with `masked_lowering`, once per process, device, dtype and shape of heads.

    The arguments are those of both, [R, H, L, D].

    The output and the three gradients may each be off from float32 by four times as much as `masked_lowering` in the
    same dtype: a kernel rounds parts of a prompt's gradient before they are summed.

    Raises:
        UserError: if the error is larger. A kernel may, for instance, put its causal diagonal at the top left.
    """
    kind = (query.device, query.dtype, *query.shape[1::2], key.shape[1])
    if kind in _checked:
        return
    inputs = [part.detach() for part in (query, key, value)]
    exact = _run(masked_lowering, [part.float() for part in inputs], segments, scale)
    plain, fast = (_run(function, inputs, segments, scale) for function in (masked_lowering, varlen_lowering))
    for name, true, one, other in zip(("output", "query", "key", "value"), exact, plain, fast, strict=True):
        error, allowed = (other - true).norm().item(), 4 * (one - true).norm().item() + 1e-6 * true.norm().item()
        if not error <= allowed:  # NaN is refused too
            raise UserError(
                f"attention: torch {torch.__version__}'s kernel for sequences is off by {error:.2g} in the {name}'s "
                f"{'values' if name == 'output' else 'gradient'} ({allowed:.2g} allowed); set {VARIABLE}=masked"
            )
    _checked.add(kind)


def _run(attend: Lowering, inputs: list[Tensor], segments: Segments, scale: float | None) -> list[Tensor]:
    """Return the output at real tokens and the gradients of a weighted sum of it, in float32."""
    # Hooks of our own hide these tensors from `recompute`, which counts what the training saves.
    hidden = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False), hidden:
        query, key, value = leaves = [part.clone().requires_grad_() for part in inputs]
        out = attend(query, key, value, segments, scale).float()[segments.comparison >= 0]
        weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
        gradients = torch.autograd.grad((out * weights).sum(), leaves)
    return [out.detach(), *(gradient.float() for gradient in gradients)]


# No mask function is registered, so transformers builds no mask: ours comes with the segments.
AttentionInterface.register(NAME, segment_attention)
