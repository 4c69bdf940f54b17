"""Sampling responses from a policy.

Each prompt and sample has noise of its own, drawn from a counter-based generator, so what a prompt draws does not
depend on the prompts beside it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prefdag.config.sampling import Sampling
from prefdag.logprobs import at_least_float32
from prefdag.models import autocast
from prefdag.seeds import generator


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
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], keys: Sequence[int], settings: Sampling, eos: int
) -> Iterator[Sample]:
    """Draw `num_samples` responses to each prompt (token ids); keys name each prompt's noise.

    Prompts are sorted by length and batched; samples of a batch come in the order of (prompt, sample).
    """
    wanted = [(index, number) for index in range(len(prompts)) for number in range(settings.num_samples)]
    wanted.sort(key=lambda pair: (len(prompts[pair[0]]), pair))
    for begin in range(0, len(wanted), settings.batch_size):
        batch = wanted[begin : begin + settings.batch_size]
        noise = np.stack([_noise(settings, keys[index], number) for index, number in batch])
        with cached_attention(model):
            found = _sample_batch(model, [prompts[index] for index, _ in batch], noise, settings, eos)
        for (index, number), (ids, values, ended) in zip(batch, found, strict=True):
            yield Sample(index, number, ids, values, ended)


@contextmanager
def cached_attention(model: PreTrainedModel) -> Iterator[None]:
    """While inside, the model attends over its key-value cache instead of over segments."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _noise(settings: Sampling, key: int, number: int) -> np.ndarray:
    """One uniform number per token of a response: [max_new_tokens]."""
    return generator(settings.seed, "sampling", key, number).random(settings.max_new_tokens)


def _sample_batch(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], noise: np.ndarray, settings: Sampling, eos: int
) -> list[tuple[list[int], list[float], bool]]:
    """Left-padded prompts, one key-value cache; rows that have ended leave the batch when half have."""
    device = next(model.parameters()).device
    tokens, mask = _left_padded(prompts, device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    rows = np.arange(len(prompts))  # which prompt each live row belongs to
    ids: list[list[int]] = [[] for _ in prompts]
    values: list[list[float]] = [[] for _ in prompts]
    ended = np.zeros(len(prompts), dtype=bool)
    for step in range(settings.max_new_tokens):
        with autocast(device):
            out = model(
                input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )
        logits = at_least_float32(out.logits[:, -1])
        chosen = choose(logits, torch.from_numpy(noise[rows, step]).to(device), settings.temperature, settings.top_p)
        logprob = logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
        for row, token, value in zip(rows, chosen.tolist(), logprob.tolist(), strict=True):
            if not ended[row]:
                ids[row].append(token)
                values[row].append(value)
                ended[row] = token == eos
        if ended.all():
            break
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        live = np.flatnonzero(~ended[rows])
        if len(live) <= len(rows) // 2:
            keep = torch.from_numpy(live).to(device)
            cache.batch_select_indices(keep)
            tokens, positions, mask, rows = tokens[keep], positions[keep], mask[keep], rows[live]
    return list(zip(ids, values, ended.tolist(), strict=True))


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.as_tensor(np.asarray(prompt, dtype=np.int64))
        mask[row, width - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def choose(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution: logits [N, V], uniform [N] in [0, 1) -> [N].

    temperature 0 takes the most likely token. top_p keeps the smallest set of tokens whose probability reaches it
    (Holtzman et al. 2020).
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits.double() / temperature).softmax(-1)
    if top_p == 1:
        return _inverted(probs, uniform)
    probs, order = torch.sort(probs, dim=-1, descending=True, stable=True)
    before = probs.cumsum(-1) - probs
    kept = torch.where(before < top_p, probs, torch.zeros_like(probs))
    return order.gather(-1, _inverted(kept, uniform)[:, None]).squeeze(-1)


def _inverted(probs: Tensor, uniform: Tensor) -> Tensor:
    """The place in each row where the cumulative sum of `probs` [N, V] passes `uniform` [N] times their total."""
    cumulative = probs.cumsum(-1)
    place = torch.searchsorted(cumulative, uniform[:, None].to(cumulative) * cumulative[:, -1:], right=True)
    # A uniform number next to 1 may round to the total: the last token that has any probability is meant.
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(place, last).squeeze(-1)
