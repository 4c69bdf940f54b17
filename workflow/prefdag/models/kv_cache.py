"""A key-value cache that is written in place, and the attention over it.

A cache that grows by concatenation copies itself at every token, which costs more than the attention. This one has room
for some tokens ahead, and ended responses are dropped by one gather. The samples of a prompt share its keys and values:
reading them once for all samples is most of the gain with long prompts.
`model(..., key_values=...)` reaches the attention as `segments` does (`prefdag.models.attention.interface`).

Shapes: R rows, H key-value heads, L columns, D per head; prompts are right-aligned in the first columns.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from prefdag.models.attention.interface import attend_capped

NAME = "prefdag_key_values"
ROOM = 64  # columns allocated at a time


class KVCache:
    """Keys and values of every layer, [R, H, L + room, D]; the first L columns are filled.

    Once rows are repeated, `prompts` holds the columns so far, and the layers those after them.

    Attributes:
        real: which columns of the prompts hold tokens, [R, L] bool; those left of a shorter prompt are padding.
        shares: whether repeated rows may share their columns.
    """

    def __init__(self, real: Tensor) -> None:
        self.columns, self.shares = 0, True
        self.prompts: Prompts | None = None
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
        if self._real is not None and self.prompts is None:
            self._real = F.pad(self._real, (0, self.columns + 1 - self._real.shape[1]), value=True)
        if self.columns == self._layers[0][0].shape[2]:
            self._layers = [[_with_room(part) for part in layer] for layer in self._layers]

    def select(self, rows: Tensor) -> None:
        """Select rows [R'], in this order, some of them perhaps several times."""
        if self.prompts is not None:
            self.prompts = self.prompts.selected(rows)
        elif self.shares and len(rows.unique()) < len(rows):
            layers = [[part[:, :, : self.columns] for part in layer] for layer in self._layers]
            real = None if self._real is None else self._real[:, : self.columns]
            self.prompts = Prompts.of(rows, layers, real)
            self._layers = [[_with_room(part[rows, :, :0]) for part in layer] for layer in layers]
            self.columns = 0
            return
        self._layers = [[_with_room(part[:, :, : self.columns][rows]) for part in layer] for layer in self._layers]
        if self._real is not None and self.prompts is None:
            self._real = self._real[rows]


@dataclass(frozen=True)
class Prompts:
    """Keys and values that rows share. N prompts with up to G rows each; slots n * G + i of a grid hold the rows.

    Attributes:
        layers: keys and values of every layer, [N, H, P, D].
        real: which columns hold tokens, [N, P]; None: all.
        owner: the prompt of each row, [R].
        slots: the slot of each row, [R]; None: row r has slot r, and no slot is empty.
        samples: G.
    """

    layers: list[list[Tensor]]
    real: Tensor | None
    owner: Tensor
    slots: Tensor | None
    samples: int

    @classmethod
    def of(cls, owner: Tensor, layers: list[list[Tensor]], real: Tensor | None) -> Self:
        """Gather the prompts that rows still need. owner: the prompt of each row, an index into layers and real."""
        needed, owner, counts = torch.unique(owner, return_inverse=True, return_counts=True)
        samples = int(counts.max())
        order = owner.argsort(stable=True)
        place = torch.empty_like(owner)
        place[order] = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]
        slots = owner * samples + place
        full = torch.equal(slots, torch.arange(len(needed) * samples, device=owner.device))
        parts = [[part[needed] for part in layer] for layer in layers]
        return cls(parts, None if real is None else real[needed], owner, None if full else slots, samples)

    def selected(self, rows: Tensor) -> Self:
        """Select rows [R']."""
        return type(self).of(self.owner[rows], self.layers, self.real)

    def grid(self, rows: Tensor) -> Tensor:
        """[R, H, g, X] -> [N, H, G g, X], zeros in empty slots."""
        num, (heads, groups, size) = len(self.layers[0][0]) * self.samples, rows.shape[1:]
        if self.slots is not None:
            rows = rows.new_zeros(num, heads, groups, size).index_copy(0, self.slots, rows)
        return rows.view(-1, self.samples, heads, groups, size).transpose(1, 2).flatten(2, 3)

    def rows(self, grid: Tensor) -> Tensor:
        """[N, H, G g, X] -> [R, H, g, X]."""
        rows = grid.unflatten(2, (self.samples, -1)).transpose(1, 2).flatten(0, 1)
        return rows if self.slots is None else rows[self.slots]


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
    if softcap is not None or s_aux is not None or sliding_window is not None:
        key_values.shares = False
    key, value = key_values.append(module.layer_idx, (key, value))
    if key_values.prompts is not None:
        return attend_shared(query, key, value, key_values.prompts, module.layer_idx, scaling), None
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


def attend_shared(
    query: Tensor, key: Tensor, value: Tensor, prompts: Prompts, layer: int, scale: float | None
) -> Tensor:
    """Attend over the shared keys of each row's prompt and over its own.

    Args:
        query: of one token a row, [R, H * g, 1, D].
        key, value: of the row's own columns, [R, H, L, D].
        prompts: keys and values of the prompts.
        layer: the number of the layer.
        scale: factor on the scores; None: D^-0.5.

    Returns:
        [R, 1, H * g, D].
    """
    rows, heads, _, size = query.shape
    query = query.reshape(rows, key.shape[1], -1, size) * (size**-0.5 if scale is None else scale)
    shared_keys, shared_values = prompts.layers[layer]
    shared = prompts.grid(query) @ shared_keys.mT
    if prompts.real is not None:
        shared.masked_fill_(~prompts.real[:, None, None, :], torch.finfo(shared.dtype).min)
    scores = torch.cat([prompts.rows(shared), query @ key.mT], -1)
    probs = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    of_prompt, of_row = probs.split([shared.shape[-1], key.shape[2]], -1)
    out = prompts.rows(prompts.grid(of_prompt) @ shared_values) + of_row @ value
    return out.reshape(rows, 1, heads, size)


# No mask function is registered, so transformers builds no mask: ours comes with the cache.
AttentionInterface.register(NAME, attention)
