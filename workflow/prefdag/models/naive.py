"""The padded path: one padded row per response, every position's logits, the full softmax.

Slow and simple. It is the oracle of the tests and the baseline of the benchmarks; no stage uses it.
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

from prefdag.config.sections.sampling import Sampling
from prefdag.data.token_store import Comparison
from prefdag.models.generation import sample_tokens
from prefdag.models.logprobs import LogProbs
from prefdag.seeds import generator


def padded_rows(comparisons: Sequence[Comparison]) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, attention mask and which positions are response tokens: each [B * K, L], right-padded."""
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
    """Compute `prefdag.models.logprobs.logprobs` by transformers' attention on padded rows."""
    device = next(model.parameters()).device
    tokens, mask, counted = (part.to(device) for part in padded_rows(comparisons))
    with transformers_attention(model):
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    shifted = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    rows = torch.arange(len(tokens), device=device)[:, None].expand(-1, tokens.shape[1] - 1)
    is_response = counted[:, 1:]
    return LogProbs(shifted[is_response], rows[is_response], (len(comparisons), len(comparisons[0].responses)))


@torch.no_grad()
def naive_sample(
    model: PreTrainedModel, prompt: Sequence[int], key: int, number: int, settings: Sampling, eos: int
) -> tuple[list[int], list[float]]:
    """Return ids and log-probs of one response of `prefdag.models.generation.sample`, encoding every prefix.

    Args:
        model: the policy.
        prompt: token ids.
        key, number: of the prompt and of the sample, which name the random stream.
        settings: sampling settings.
        eos: id that ends a response.
    """
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
    """While active, the model uses transformers' masks and SDPA's plain arithmetic."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def float64_norms() -> Iterator[None]:
    """While active, RMS norms stay in float64: transformers casts to float32, too coarse for a tolerance of 1e-9."""

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
