"""Sample responses from a policy.

Each prompt and sample has its own noise from a counter-based generator, so a prompt's samples do not depend on which
prompts share its batch.
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

COMPACT_BELOW = 3 / 4  # ended rows are dropped once at most this share is alive: measured, 1/2 and 7/8 are slower
UNIT = 2**60  # integer units of a probability of 1


@dataclass(frozen=True)
class Sample:
    """One response.

    Attributes:
        prompt: index of its prompt.
        sample: its number among the prompt's samples.
        ids: its token ids, the end-of-turn included if it was sampled.
        logprobs: nats of each token under the policy itself (temperature 1, all tokens), unless `tempered`.
        ended: whether the end-of-turn was sampled.
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
    keys: Sequence[object],
    settings: Sampling,
    eos: int,
    title: str = "sampling",
    tempered: bool = False,
) -> Iterator[Sample]:
    """Sample `num_samples` responses to each prompt.

    Prompts are sorted by length and batched. Greedy samples of a prompt are equal, so one is computed.

    Args:
        model: the policy.
        prompts: token ids of each prompt.
        keys: names of each prompt's noise stream.
        settings: temperature, top_p, lengths, batch size and seed.
        eos: the end-of-turn's id.
        title: what to call the progress line.
        tempered: return log-probs of the sampling distribution, the logits divided by the temperature.

    Yields:
        Samples; those of a batch in the order of (prompt, sample).
    """
    draws = settings.num_samples if settings.temperature else 1
    jobs = [(index, number) for index in range(len(prompts)) for number in range(draws)]
    jobs.sort(key=lambda pair: (len(prompts[pair[0]]), pair))
    batches = [jobs[at : at + settings.batch_size] for at in range(0, len(jobs), settings.batch_size)]
    for batch in with_progress(batches, len, len(jobs), title):
        noise = np.stack([_noise(settings, keys[index], number) for index, number in batch])
        rows = {index: row for row, index in enumerate(dict.fromkeys(index for index, _ in batch))}
        with cached_attention(model):
            decoder = _Decoder(model, [prompts[index] for index in rows])
            decoder.select([rows[index] for index, _ in batch])
            responses = _responses(decoder, torch.from_numpy(noise), settings, eos, tempered)
        for (index, number), (ids, values) in zip(batch, responses, strict=True):
            for copy in range(number, settings.num_samples, draws):
                yield Sample(index, copy, ids, values, ids[-1] == eos)


def _noise(settings: Sampling, key: object, number: int) -> np.ndarray:
    """Return one uniform number per token of a response: [max_new_tokens]."""
    return generator(settings.seed, "sampling", key, number).random(settings.max_new_tokens)


class _Decoder:
    """Rows that grow by one token at a time.

    logits [R, V]: of each row's next token. positions [R, 1]: of each row's last token.
    """

    logits: Tensor
    positions: Tensor

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.device = model, next(model.parameters()).device
        tokens, mask = _left_padded(prompts, self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.key_values = KVCache(mask.bool())
        self._forward(tokens, positions)

    def select(self, rows: Sequence[int] | Tensor) -> None:
        """Select rows, in this order, some of them perhaps several times."""
        index = torch.as_tensor(rows, device=self.device)
        self.key_values.select(index)
        self.logits, self.positions = self.logits[index], self.positions[index]

    def append(self, tokens: Tensor) -> None:
        """Append one token to every row: [R]."""
        self._forward(tokens[:, None], self.positions + 1)

    def _forward(self, tokens: Tensor, positions: Tensor) -> None:
        with autocast(self.device):
            out = self.model(
                input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=1, key_values=self.key_values
            )
        self.key_values.advance(tokens.shape[1])
        self.logits, self.positions = at_least_float32(out.logits[:, -1]), positions[:, -1:]


def _responses(
    decoder: _Decoder, noise: Tensor, settings: Sampling, eos: int, tempered: bool
) -> list[tuple[list[int], list[float]]]:
    """Decode one response per row of the decoder, dropping rows that have ended when enough of them have.

    Returns the ids and log-probs of each response; noise: [R, max_new_tokens].
    """
    noise = noise.to(decoder.device)
    ids = torch.zeros(noise.shape, dtype=torch.int64, device=decoder.device)
    values = torch.zeros(noise.shape, dtype=torch.float64, device=decoder.device)
    rows = torch.arange(len(noise), device=decoder.device)  # the response of each live row
    alive = torch.ones_like(rows, dtype=torch.bool)
    for step in range(settings.max_new_tokens):
        chosen = sample_tokens(decoder.logits, noise[rows, step], settings.temperature, settings.top_p)
        logits = decoder.logits / settings.temperature if tempered else decoder.logits
        logprobs = logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
        ids[rows, step], values[rows, step] = chosen, logprobs.double()
        alive &= chosen != eos
        num_alive = int(alive.sum())
        if num_alive == 0 or step + 1 == settings.max_new_tokens:
            break
        if num_alive <= COMPACT_BELOW * len(rows):
            index = alive.nonzero().squeeze(-1)
            decoder.select(index)
            rows, alive, chosen = rows[index], alive[index], chosen[index]
        decoder.append(chosen)
    return [_truncate(eos, *row) for row in zip(ids.tolist(), values.tolist(), strict=True)]


def _truncate(eos: int, ids: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """Cut a response after its first end-of-turn: an ended row continues until it is dropped."""
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
    """Sample one token per row by inverting the cumulative distribution.

    Args:
        logits: [N, V].
        uniform: [N], in [0, 1).
        temperature: divides the logits; 0 takes the most likely token.
        top_p: sample from the smallest set of tokens whose probability reaches it.

    Returns:
        Token ids, [N].

    Reference: Holtzman et al. 2020 (top_p).
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits.double() / temperature).softmax(-1)
    if top_p == 1:
        return _invert_cdf(_to_units(probs), uniform)
    probs, order = torch.sort(probs, dim=-1, descending=True, stable=True)
    units = _to_units(probs)
    before = units.cumsum(-1) - units
    nucleus = torch.where(before < int(top_p * UNIT), units, 0)
    return order.gather(-1, _invert_cdf(nucleus, uniform)[:, None]).squeeze(-1)


def _to_units(probs: Tensor) -> Tensor:
    """Return probabilities as int64: integer sums are exact in any order, so CUDA's parallel sums are deterministic."""
    return (probs * UNIT).to(torch.int64)


def _invert_cdf(units: Tensor, uniform: Tensor) -> Tensor:
    """Return the index in each row where the cumulative sum of units [N, V] exceeds uniform [N] times its total."""
    cumulative = units.cumsum(-1)
    total = cumulative[:, -1:]
    # A uniform number next to 1 may round to the total, which no index exceeds.
    threshold = (uniform[:, None].double() * total).to(torch.int64).minimum(total - 1)
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
