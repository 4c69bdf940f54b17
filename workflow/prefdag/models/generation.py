"""Sample responses from a policy.

Each prompt and sample has its own noise from a counter-based generator, so a prompt's samples do not depend on which
prompts share its batch.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.config.sections.sampling import Sampling
from prefdag.data.parallel import with_progress
from prefdag.models.decoding import Decoder
from prefdag.models.decoding_proof import chosen_decoder
from prefdag.seeds import generator

COMPACT_BELOW = 3 / 4  # ended rows are dropped once at most this share is alive: measured, 1/2 and 7/8 are slower
UNIT = 2**60  # integer units of a probability of 1
BLOCK = 64  # tokens whose probabilities are summed before the block with the chosen token is searched
CACHE = 2 << 20  # bytes of probabilities at a time: 0.5 MB is half as slow again at 49,152 tokens, 8 MB twice at 2,048


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
    top_k: int | None = None,
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
        tempered: return log-probs under the sampling distribution: tempered, without the tokens that are left out.
        top_k: sample among so many tokens only.

    Yields:
        Samples; those of a batch in the order of (prompt, sample).
    """
    draws = settings.num_samples if settings.temperature else 1
    jobs = [(index, number) for index in range(len(prompts)) for number in range(draws)]
    jobs.sort(key=lambda pair: (len(prompts[pair[0]]), pair))
    decoder_class = chosen_decoder(model)
    batches = _batches(jobs, prompts, settings.batch_size, decoder_class.equal_lengths)
    for batch in with_progress(batches, len, len(jobs), title):
        noise = np.stack([_noise(settings, keys[index], number) for index, number in batch])
        rows = {index: row for row, index in enumerate(dict.fromkeys(index for index, _ in batch))}
        with decoder_class.attention(model):
            decoder = decoder_class(model, [prompts[index] for index in rows])
            decoder.select([rows[index] for index, _ in batch])
            responses = _responses(decoder, torch.from_numpy(noise), settings, eos, tempered, top_k)
        for (index, number), (ids, values) in zip(batch, responses, strict=True):
            for copy in range(number, settings.num_samples, draws):
                yield Sample(index, copy, ids, values, ids[-1] == eos)


def _batches(
    jobs: list[tuple[int, int]], prompts: Sequence[Sequence[int]], size: int, equal_lengths: bool
) -> list[list[tuple[int, int]]]:
    """Cut sorted jobs (prompt, sample) into batches; where asked, of prompts of one length only."""
    groups: list[list[tuple[int, int]]] = [jobs]
    if equal_lengths:
        groups = [list(group) for _, group in itertools.groupby(jobs, key=lambda job: len(prompts[job[0]]))]
    return [group[at : at + size] for group in groups for at in range(0, len(group), size)]


def _noise(settings: Sampling, key: object, number: int) -> np.ndarray:
    """Return one uniform number per token of a response: [max_new_tokens]."""
    return generator(settings.seed, "sampling", key, number).random(settings.max_new_tokens)


def _responses(
    decoder: Decoder, noise: Tensor, settings: Sampling, eos: int, tempered: bool, top_k: int | None
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
        uniform, log_mass = noise[rows, step], None
        if settings.temperature and (settings.top_p < 1 or top_k is not None):
            chosen, log_mass = sample_truncated(decoder.logits, uniform, settings.temperature, settings.top_p, top_k)
        else:
            chosen = sample_tokens(decoder.logits, uniform, settings.temperature, 1.0)
        logits = decoder.logits / settings.temperature if tempered and settings.temperature != 1 else decoder.logits
        logprobs = logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1).double()
        ids[rows, step] = chosen
        values[rows, step] = logprobs if log_mass is None or not tempered else logprobs - log_mass
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


def sample_tokens(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Sample one token per row by inverting the cumulative distribution.

    Args:
        logits: [N, V].
        uniform: [N], in [0, 1).
        temperature: divides the logits; 0 takes the most likely token.
        top_p: as `sample_truncated` takes it.

    Returns:
        Token ids, [N].
    """
    if temperature == 0:
        return logits.argmax(-1)
    if top_p < 1:
        return sample_truncated(logits, uniform, temperature, top_p)[0]
    invert = _invert_in_blocks if logits.device.type == "cpu" else invert_exactly
    return invert(logits, uniform, temperature)


def invert_exactly(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Sample one token per row in whole numbers, whose sums are the same in any order: for devices without one.

    Args:
        logits: [N, V].
        uniform: [N], in [0, 1).
        temperature: above 0, divides the logits.

    Returns:
        Token ids, [N].
    """
    return _invert_cdf(_to_units((logits.double() / temperature).softmax(-1)), uniform)


def sample_truncated(
    logits: Tensor, uniform: Tensor, temperature: float, top_p: float, top_k: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sample one token per row, leaving out the least likely tokens.

    Args:
        logits: [N, V].
        uniform: [N], in [0, 1).
        temperature: above 0, divides the logits.
        top_p: sample from the smallest set of tokens whose share of the probability reaches it.
        top_k: first leave out all but so many tokens, the most likely ones.

    Returns:
        Token ids [N], and the log of the probability of all tokens that could be sampled [N], float64.

    Reference: Fan et al. 2018 (top_k); Holtzman et al. 2020 (top_p).
    """
    probs, order = torch.sort((logits.double() / temperature).softmax(-1), dim=-1, descending=True, stable=True)
    units = _to_units(probs)
    total, reached = units.sum(-1, keepdim=True), torch.tensor(int(top_p * UNIT), device=units.device)
    if top_k is not None:
        units[:, top_k:] = 0
        if top_p < 1:
            reached = (top_p * units.sum(-1, keepdim=True).double()).to(torch.int64)
    nucleus = torch.where(units.cumsum(-1) - units < reached, units, 0)
    chosen = order.gather(-1, _invert_cdf(nucleus, uniform)[:, None]).squeeze(-1)
    return chosen, (nucleus.sum(-1).double() / total.squeeze(-1).double()).log()


def _invert_in_blocks(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Do as `_invert_cdf` on a CPU, where sums of floats have one order: find the block of tokens, then the token.

    A cumulative sum over the whole vocabulary is several times as slow as the sums of its blocks.

    Args:
        logits: [N, V].
        uniform: [N], in [0, 1).
        temperature: divides the logits.

    Returns:
        Token ids, [N].
    """
    width = logits.shape[1]
    padded = -width % BLOCK
    chosen = torch.empty(len(logits), dtype=torch.int64)
    rows = max(1, CACHE // (8 * width))
    buffer = torch.zeros(rows, width + padded, dtype=torch.float64)
    for begin in range(0, len(logits), rows):
        part = logits[begin : begin + rows]
        exps = buffer[: len(part)]
        scaled = exps[:, :width].copy_(part)
        scaled.sub_(part.amax(-1, keepdim=True))
        if temperature != 1:
            scaled /= temperature
        scaled.exp_()
        blocks = exps.view(len(part), -1, BLOCK)
        ends = blocks.sum(-1).cumsum(-1)
        total = ends[:, -1:]
        # A uniform number next to 1 may round to the total, which no index exceeds.
        threshold = (uniform[begin : begin + rows, None].double() * total).minimum(total.nextafter(0 * total))
        block = torch.searchsorted(ends, threshold, right=True).clamp(max=ends.shape[1] - 1)  # NaN is beyond the end
        before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
        inside = blocks[torch.arange(len(part)), block.squeeze(1)].cumsum(-1)
        # A block's sum and its last cumulative sum may round differently: take at most its last possible token.
        last = (inside < inside[:, -1:]).sum(-1, keepdim=True)
        place = torch.searchsorted(inside, threshold - before, right=True).minimum(last)
        chosen[begin : begin + rows] = (block * BLOCK + place).squeeze(1).clamp(max=width - 1)
    return chosen


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
