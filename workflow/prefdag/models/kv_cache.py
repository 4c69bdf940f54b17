"""A key-value cache that is written in place, and the attention over it.

A cache that grows by concatenation copies itself at every token, which costs more than the attention. This one has room
for some tokens ahead; rows are repeated (a prompt's samples) and dropped (ended responses) by one gather.
`model(..., key_values=...)` reaches the attention as `segments` does (`prefdag.models.attention.interface`).

Shapes: R rows, H key-value heads, L columns, D per head; prompts are right-aligned in the first columns.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from prefdag.models.attention.interface import attend_capped

NAME = "prefdag_key_values"
ROOM = 64  # columns allocated at a time


class KVCache:
    """Keys and values of every layer, [R, H, L + room, D]; the first L columns are filled.

    real: which columns of the prompts hold tokens, [R, L] bool; those left of a shorter prompt are padding.
    """

    def __init__(self, real: Tensor) -> None:
        self.columns = 0
        self._layers: list[list[Tensor]] = []
        # A batch without padding needs no mask. Padding sees itself, as a softmax over nothing is NaN.
        self._real = None if bool(real.all()) else real
        square = real.new_ones(real.shape[1], real.shape[1])
        self._mask: Tensor | None = real[:, None, None, :] & square.tril() | square.tril() & square.triu()

    def append(self, layer: int, new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values [R, H, new, D]; return views of all of its keys and values."""
        if layer == len(self._layers):
            self._layers.append([_with_room(part) for part in new])
        end = self.columns + new[0].shape[2]
        keys, values = self._layers[layer]
        for buffer, part in zip((keys, values), new, strict=True):
            buffer[:, :, self.columns : end] = part
        return keys[:, :, :end], values[:, :, :end]

    def mask(self, window: int | None = None) -> Tensor | None:
        """Return which columns the prompts' tokens, later each row's next token, see: [R, 1, L, L]; None: all.

        window: columns that a token sees, its own included; None: all.
        """
        if self.columns == 0:
            mask, width = self._mask, 0 if self._mask is None else self._mask.shape[-1]
            if mask is None or window is None or width <= window:
                return mask
            return mask & ~torch.ones_like(mask[0, 0]).tril(-window)
        real = None if self._real is None else self._real[:, None, None, :]
        if window is None or self.columns < window:
            return real
        columns = torch.arange(self.columns + 1, device=self._layers[0][0].device)
        near = (columns > self.columns - window)[None, None, None, :]
        return near if real is None else real & near

    def advance(self, new: int) -> None:
        """Count the columns that a forward pass wrote, and make room for the next."""
        self.columns += new
        self._mask = None
        if self._real is not None:
            self._real = F.pad(self._real, (0, self.columns + 1 - self._real.shape[1]), value=True)
        if self.columns == self._layers[0][0].shape[2]:
            self._layers = [[_with_room(part) for part in layer] for layer in self._layers]

    def select(self, rows: Tensor) -> None:
        """Select rows [R'], in this order, some of them perhaps several times."""
        self._layers = [[_with_room(part[:, :, : self.columns][rows]) for part in layer] for layer in self._layers]
        if self._real is not None:
            self._real = self._real[rows]


def _with_room(part: Tensor) -> Tensor:
    rows, heads, columns, size = part.shape
    buffer = part.new_empty(rows, heads, columns + ROOM, size)
    buffer[:, :, :columns] = part
    return buffer


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    key_values: KVCache,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Append key and value to the cache, and attend over all of it.

    Args:
        query: [R, H * groups, new, D].
        key, value: of the new tokens, [R, H, new, D].
        key_values: the cache.
        scaling: factor on the scores; None: D^-0.5.
        sliding_window, softcap, s_aux: as in `prefdag.models.attention.interface.segment_attention`.

    Returns:
        The output [R, new, H * groups, D], and None for the attention weights.
    """
    assert isinstance(module.layer_idx, int)
    key, value = key_values.append(module.layer_idx, (key, value))
    mask = key_values.mask(sliding_window)
    if softcap is not None or s_aux is not None:
        return attend_capped(query, key, value, mask, scaling, softcap, s_aux), None
    rows, heads, new, size = query.shape
    groups = heads // key.shape[1]
    if new == 1:  # treat the query heads of a key head as its queries, so that no key is copied
        query = query.reshape(rows, heads // groups, groups, size)
    elif groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(rows, heads, new, size).transpose(1, 2).contiguous(), None


# No mask function is registered, so transformers builds no mask: ours comes with the cache.
AttentionInterface.register(NAME, attention)
