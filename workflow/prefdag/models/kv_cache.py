"""A key-value cache that is written in place, and the attention over it.

A cache that grows by concatenation copies itself at every token, which costs more than attending over it. This one has
room for some tokens ahead; rows are expanded (a prompt's samples) and left out (responses that have ended) by one
gather. `model(..., key_values=...)` reaches the attention as `segments` do (`prefdag.models.attention.interface`).
Shapes: R rows, H key-value heads, L columns, D per head; prompts stand at the right end of the first columns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

NAME = "prefdag_key_values"
ROOM = 64  # columns made at a time


class KVCache:
    """Keys and values of every layer, [R, H, L + room, D]; the first L columns are filled.

    real: which columns of the prompts hold tokens, [R, L] truth values; those left of a shorter prompt are padding.
    """

    def __init__(self, real: Tensor) -> None:
        self.columns = 0
        self._layers: list[list[Tensor]] = []
        # A batch without padding needs no mask. Padding sees itself, else its softmax would be over nothing.
        self._real = None if bool(real.all()) else real
        square = real.new_ones(real.shape[1], real.shape[1])
        self._mask: Tensor | None = real[:, None, None, :] & square.tril() | square.tril() & square.triu()

    def extended(self, layer: int, new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Write the keys and values [R, H, new, D] of a layer behind its others; returns all of them, as views."""
        if layer == len(self._layers):
            self._layers.append([_with_room(part) for part in new])
        upto = self.columns + new[0].shape[2]
        found = self._layers[layer]
        for held, part in zip(found, new, strict=True):
            held[:, :, self.columns : upto] = part
        return found[0][:, :, :upto], found[1][:, :, :upto]

    def mask(self) -> Tensor | None:
        """What the prompts' tokens see, [R, 1, L, L], then what each row's next token sees; None: everything."""
        if self.columns == 0:
            return self._mask
        return None if self._real is None else self._real[:, None, None, :]

    def advance(self, new: int) -> None:
        """Count the columns that a forward pass has written, and make room for the next."""
        self.columns += new
        self._mask = None
        if self._real is not None:
            self._real = F.pad(self._real, (0, self.columns + 1 - self._real.shape[1]), value=True)
        if self.columns == self._layers[0][0].shape[2]:
            self._layers = [[_with_room(part) for part in layer] for layer in self._layers]

    def take(self, rows: Tensor) -> None:
        """Keep these rows, [R'], in their order; a row may be taken more than once."""
        self._layers = [[_with_room(part[:, :, : self.columns][rows]) for part in layer] for layer in self._layers]
        if self._real is not None:
            self._real = self._real[rows]


def _with_room(part: Tensor) -> Tensor:
    rows, heads, columns, size = part.shape
    made = part.new_empty(rows, heads, columns + ROOM, size)
    made[:, :, :columns] = part
    return made


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    key_values: KVCache,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of query [R, H * groups, new, D] over the cache, with key and value [R, H, new, D] put into it."""
    assert isinstance(module.layer_idx, int)
    key, value = key_values.extended(module.layer_idx, (key, value))
    rows, heads, new, size = query.shape
    groups = heads // key.shape[1]
    if new == 1:  # the query heads of one key head stand where its queries would, so no key is copied
        query = query.reshape(rows, heads // groups, groups, size)
    elif groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=key_values.mask(), scale=scaling)
    return out.reshape(rows, heads, new, size).transpose(1, 2).contiguous(), None


@contextmanager
def cached_attention(model: PreTrainedModel) -> Iterator[None]:
    """While inside, the model attends over a key-value cache instead of over segments."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(NAME, attention)
# No mask is registered, and so none is asked for: ours comes with the cache.
