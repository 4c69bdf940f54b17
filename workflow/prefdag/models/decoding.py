"""Decoders: rows of tokens that grow by one token at a time, with the logits of each row's next token.

`KeyValueDecoder` is the fast one. `TransformersDecoder` uses the model's own cache, which state-space and older
architectures need, and `PrefixDecoder` has none. `prefdag.models.decoding_proof` chooses.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.models.kv_cache import NAME, KVCache
from prefdag.models.ops.device import at_least_float32, autocast
from prefdag.models.route import implementation


class Decoder(ABC):
    """Rows that grow by one token at a time.

    Attributes:
        logits: [R, V], of each row's next token, float32 or wider.
        equal_lengths: whether the prompts of one decoder must have the same length.
    """

    logits: Tensor
    equal_lengths = True

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.device = model, next(model.parameters()).device

    @abstractmethod
    def select(self, rows: Sequence[int] | Tensor) -> None:
        """Select rows, in this order, some of them perhaps several times."""

    @abstractmethod
    def append(self, tokens: Tensor) -> None:
        """Append one token to every row: [R]."""

    @classmethod
    @contextmanager
    def attention(cls, model: PreTrainedModel) -> Iterator[None]:
        """While active, the model attends as this decoder needs: by default, by transformers' plain attention."""
        with implementation(model, "eager"):
            yield


class KeyValueDecoder(Decoder):
    """A decoder with our own cache of keys and values; positions [R, 1]: of each row's last token."""

    equal_lengths = False
    positions: Tensor

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        super().__init__(model, prompts)
        tokens, mask = _left_padded(prompts, self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.key_values = KVCache(mask.bool())
        self._forward(tokens, positions)

    def select(self, rows: Sequence[int] | Tensor) -> None:
        index = torch.as_tensor(rows, device=self.device)
        self.key_values.select(index)
        self.logits, self.positions = self.logits[index], self.positions[index]

    def append(self, tokens: Tensor) -> None:
        self._forward(tokens[:, None], self.positions + 1)

    @classmethod
    @contextmanager
    def attention(cls, model: PreTrainedModel) -> Iterator[None]:
        with implementation(model, NAME):
            yield

    def _forward(self, tokens: Tensor, positions: Tensor) -> None:
        with autocast(self.device):
            out = self.model(
                input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=1, key_values=self.key_values
            )
        self.key_values.advance(tokens.shape[1])
        self.logits, self.positions = at_least_float32(out.logits[:, -1]), positions[:, -1:]


class TransformersDecoder(Decoder):
    """A decoder with the model's own cache, of prompts of one length: there is no padding to get wrong."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        super().__init__(model, prompts)
        self.cache: dict[str, Any] = {}
        self._forward(torch.as_tensor(np.array(prompts, dtype=np.int64), device=self.device))

    def select(self, rows: Sequence[int] | Tensor) -> None:
        index = torch.as_tensor(rows, device=self.device)
        for cache in self.cache.values():
            cache.reorder_cache(index)
        self.logits = self.logits[index]

    def append(self, tokens: Tensor) -> None:
        self._forward(tokens[:, None])

    def _forward(self, tokens: Tensor) -> None:
        with autocast(self.device):
            out = self.model(input_ids=tokens, use_cache=True, **self.cache)
        # State-space models have a cache of another name.
        self.cache = {name: out[name] for name in ("past_key_values", "cache_params") if name in out}
        self.logits = at_least_float32(out.logits[:, -1])


class PrefixDecoder(Decoder):
    """A decoder without a cache: every token runs the whole row again."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        super().__init__(model, prompts)
        self.tokens = torch.as_tensor(np.array(prompts, dtype=np.int64), device=self.device)
        self._forward()

    def select(self, rows: Sequence[int] | Tensor) -> None:
        index = torch.as_tensor(rows, device=self.device)
        self.tokens, self.logits = self.tokens[index], self.logits[index]

    def append(self, tokens: Tensor) -> None:
        self.tokens = torch.cat([self.tokens, tokens[:, None]], 1)
        self._forward()

    def _forward(self) -> None:
        with autocast(self.device):
            out = self.model(input_ids=self.tokens, use_cache=False)
        self.logits = at_least_float32(out.logits[:, -1])


DECODERS: dict[str, type[Decoder]] = {
    "key_values": KeyValueDecoder,
    "transformers": TransformersDecoder,
    "prefix": PrefixDecoder,
}


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.as_tensor(np.asarray(prompt, dtype=np.int64))
        mask[row, width - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)
