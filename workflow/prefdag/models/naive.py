"""The plain path: one padded row per response, every position's logits, the full softmax.

Slow and obvious. It is the oracle of the tests and the first rung of the benchmark's ladder; nothing else uses it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from prefdag.config.sampling import Sampling
from prefdag.data.token_store import Comparison
from prefdag.models.generation import sample_tokens
from prefdag.models.logprobs import LogProbs
from prefdag.seeds import generator


def padded_rows(comparisons: Sequence[Comparison]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention mask and which positions are counted, each [B * K, L]: prompt and response, right-padded."""
    pairs = [(c.prompt.tolist(), response.tolist()) for c in comparisons for response in c.responses]
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    tokens = torch.zeros(len(pairs), width, dtype=torch.int64)
    mask, counted = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    for row, (prompt, response) in enumerate(pairs):
        length = len(prompt) + len(response)
        tokens[row, :length] = torch.tensor([*prompt, *response])
        mask[row, :length] = 1
        counted[row, len(prompt) : length] = True
    return tokens, mask, counted


def naive_logprobs(model: PreTrainedModel, comparisons: Sequence[Comparison]) -> LogProbs:
    """What `prefdag.models.logprobs.logprobs` computes, from transformers' own attention on padded rows."""
    device = next(model.parameters()).device
    tokens, mask, counted = (part.to(device) for part in padded_rows(comparisons))
    with transformers_attention(model):
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    shifted = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    rows = torch.arange(len(tokens), device=device)[:, None].expand(-1, tokens.shape[1] - 1)
    kept = counted[:, 1:]
    return LogProbs(shifted[kept], rows[kept], (len(comparisons), len(comparisons[0].responses)))


@torch.no_grad()
def naive_sample(
    model: PreTrainedModel, prompt: Sequence[int], key: int, number: int, settings: Sampling, eos: int
) -> tuple[list[int], list[float]]:
    """Ids and log-probs of one response that `prefdag.models.generation.sample` draws; encodes every prefix."""
    noise = generator(settings.seed, "sampling", key, number).random(settings.max_new_tokens)
    ids, values = list[int](), list[float]()
    with transformers_attention(model):
        while len(ids) < settings.max_new_tokens and eos not in ids:
            logits = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[:, -1].float()
            chosen = sample_tokens(logits, torch.tensor(noise[len(ids)])[None], settings.temperature, settings.top_p)
            values.append(logits.log_softmax(-1)[0, chosen].item())
            ids.append(int(chosen))
    return ids, values


@contextmanager
def transformers_attention(model: PreTrainedModel) -> Iterator[None]:
    """While inside, the model uses transformers' masks and SDPA's plain arithmetic."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def float64_norms() -> Iterator[None]:
    """While inside, RMS norms keep float64: transformers' own cast to float32, which no 1e-9 survives."""

    def forward(self: Any, states: Tensor) -> Tensor:
        variance = states.pow(2).mean(-1, keepdim=True)
        return self.weight * (states * torch.rsqrt(variance + self.variance_epsilon))

    kinds: tuple[Any, ...] = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)
    before = {kind: kind.forward for kind in kinds}
    try:
        for kind in before:
            kind.forward = forward
        yield
    finally:
        for kind, original in before.items():
            kind.forward = original
