"""Sampling responses from a policy.

Each prompt and sample has noise of its own, drawn from a counter-based generator, so what a prompt draws does not
depend on the prompts beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.config.sampling import Sampling
from prefdag.data.parallel import with_progress
from prefdag.models.kv_cache import KVCache, cached_attention
from prefdag.models.ops.device import at_least_float32, autocast
from prefdag.seeds import generator

LEAVING = 3 / 4  # ended rows leave the batch when no more than this share goes on: measured, 1/2 and 7/8 are slower
WHOLE = 2**60  # parts of a probability of 1


@dataclass(frozen=True)
class Sample:
    """One response: its prompt and sample number, its token ids with the end-of-turn if it came, their log-probs.

    logprobs: nats, of the policy itself (temperature 1, whole vocabulary), whatever the sampling settings.
    """

    prompt: int
    sample: int
    ids: list[int]
    logprobs: list[float]
    ended: bool


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[int],
    settings: Sampling,
    eos: int,
    title: str = "sampling",
) -> Iterator[Sample]:
    """Draw `num_samples` responses to each prompt (token ids); keys name each prompt's noise.

    Prompts are sorted by length and batched; samples of a batch come in the order of (prompt, sample). Greedy samples
    of a prompt are all alike, so one is drawn. title: of the progress that is shown.
    """
    draws = settings.num_samples if settings.temperature else 1
    wanted = [(index, number) for index in range(len(prompts)) for number in range(draws)]
    wanted.sort(key=lambda pair: (len(prompts[pair[0]]), pair))
    batches = [wanted[at : at + settings.batch_size] for at in range(0, len(wanted), settings.batch_size)]
    for batch in with_progress(batches, len, len(wanted), title):
        noise = np.stack([_noise(settings, keys[index], number) for index, number in batch])
        asked = {index: place for place, index in enumerate(dict.fromkeys(index for index, _ in batch))}
        with cached_attention(model):
            decoder = _Decoder(model, [prompts[index] for index in asked])
            decoder.take([asked[index] for index, _ in batch])
            found = _responses(decoder, torch.from_numpy(noise), settings, eos)
        for (index, number), (ids, values) in zip(batch, found, strict=True):
            for copy in range(number, settings.num_samples, draws):
                yield Sample(index, copy, ids, values, ids[-1] == eos)


def _noise(settings: Sampling, key: int, number: int) -> np.ndarray:
    """One uniform number per token of a response: [max_new_tokens]."""
    return generator(settings.seed, "sampling", key, number).random(settings.max_new_tokens)


class _Decoder:
    """Rows that grow by a token at a time. logits: of each row's next token, [R, V]; prompts are encoded at once."""

    logits: Tensor
    positions: Tensor

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.device = model, next(model.parameters()).device
        tokens, mask = _left_padded(prompts, self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.key_values = KVCache(mask.bool())
        self._forward(tokens, positions)

    def take(self, rows: Sequence[int] | Tensor) -> None:
        """Keep these rows, one of them perhaps several times."""
        index = torch.as_tensor(rows, device=self.device)
        self.key_values.take(index)
        self.logits, self.positions = self.logits[index], self.positions[index]

    def append(self, tokens: Tensor) -> None:
        """One more token [R] to every row."""
        self._forward(tokens[:, None], self.positions + 1)

    def _forward(self, tokens: Tensor, positions: Tensor) -> None:
        with autocast(self.device):
            out = self.model(
                input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=1, key_values=self.key_values
            )
        self.key_values.advance(tokens.shape[1])
        self.logits, self.positions = at_least_float32(out.logits[:, -1]), positions[:, -1:]


def _responses(decoder: _Decoder, noise: Tensor, settings: Sampling, eos: int) -> list[tuple[list[int], list[float]]]:
    """Ids and log-probs of one response per row of the decoder; noise is [R, max_new_tokens].

    Rows that have ended leave the batch when enough of them have.
    """
    noise = noise.to(decoder.device)
    ids = torch.zeros(noise.shape, dtype=torch.int64, device=decoder.device)
    values = torch.zeros(noise.shape, dtype=torch.float64, device=decoder.device)
    rows = torch.arange(len(noise), device=decoder.device)  # which response each live row is
    going = torch.ones_like(rows, dtype=torch.bool)
    for step in range(settings.max_new_tokens):
        chosen = sample_tokens(decoder.logits, noise[rows, step], settings.temperature, settings.top_p)
        logprobs = decoder.logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
        ids[rows, step], values[rows, step] = chosen, logprobs.double()
        going &= chosen != eos
        num_going = int(going.sum())
        if num_going == 0 or step + 1 == settings.max_new_tokens:
            break
        if num_going <= LEAVING * len(rows):
            keep = going.nonzero().squeeze(-1)
            decoder.take(keep)
            rows, going, chosen = rows[keep], going[keep], chosen[keep]
        decoder.append(chosen)
    return [_until(eos, *row) for row in zip(ids.tolist(), values.tolist(), strict=True)]


def _until(eos: int, ids: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """A response up to its first end-of-turn; a row goes on until it leaves the batch."""
    length = ids.index(eos) + 1 if eos in ids else len(ids)
    return ids[:length], values[:length]


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.as_tensor(np.asarray(prompt, dtype=np.int64))
        mask[row, width - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def sample_tokens(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution: logits [N, V], uniform [N] in [0, 1) -> [N].

    temperature 0 takes the most likely token. top_p keeps the smallest set of tokens whose probability reaches it
    (Holtzman et al. 2020).
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits.double() / temperature).softmax(-1)
    if top_p == 1:
        return _inverted(_parts(probs), uniform)
    probs, order = torch.sort(probs, dim=-1, descending=True, stable=True)
    parts = _parts(probs)
    before = parts.cumsum(-1) - parts
    kept = torch.where(before < int(top_p * WHOLE), parts, 0)
    return order.gather(-1, _inverted(kept, uniform)[:, None]).squeeze(-1)


def _parts(probs: Tensor) -> Tensor:
    """Probabilities in whole parts, int64: sums of these are exact, in whatever order CUDA takes them."""
    return (probs * WHOLE).to(torch.int64)


def _inverted(parts: Tensor, uniform: Tensor) -> Tensor:
    """The place in each row where the cumulative sum of `parts` [N, V] passes `uniform` [N] times their total."""
    cumulative = parts.cumsum(-1)
    total = cumulative[:, -1:]
    # A uniform number next to 1 may round to the total, which no place passes.
    asked = (uniform[:, None].double() * total).to(torch.int64).minimum(total - 1)
    return torch.searchsorted(cumulative, asked, right=True).squeeze(-1)
