"""What the proofs share: tiny models with lively weights, random comparisons, the distance of two computations.

Every proof measures the same three things of two computations - values, a loss, the gradient of every parameter -
and asserts how far apart they are; a broken twin is measured by the very same function.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from prefdag.config.model import Architectural
from prefdag.data.token_store import Comparison, Store, StoreWriter
from prefdag.models.loading import build, without_dropout
from prefdag.models.naive import padded_rows, transformers_attention

torch.set_num_threads(1)

VOCABULARY = 50
BOS, EOS = 0, 1
# Every supported architecture; grouped queries where there are any, output embeddings both tied and not.
SHAPES = {
    "llama": {"architecture": "llama", "key_value_heads": 2},
    "llama untied": {"architecture": "llama", "tie_embeddings": False},
    "gpt2": {"architecture": "gpt2"},
    "gpt_neox": {"architecture": "gpt_neox", "tie_embeddings": False},
    "mistral": {"architecture": "mistral", "key_value_heads": 2},
    "qwen2": {"architecture": "qwen2", "key_value_heads": 2},
    "qwen2 untied": {"architecture": "qwen2", "key_value_heads": 1, "tie_embeddings": False},
}
ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "mistral", "qwen2"]

Values = dict[str, Tensor]  # by name: what was computed, the loss, the gradient of each parameter


def tiny(
    shape: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float64, layers: int = 2
) -> PreTrainedModel:
    """Layers of 16 dimensions. Initial weights of 0.02 hide mistakes, so every weight is moved by about 0.2."""
    model = build(
        Architectural(hidden_size=16, layers=layers, heads=4, context=64, **SHAPES[shape]), VOCABULARY, BOS, EOS, seed
    )
    return stirred(model, seed).to(dtype)


def tiny_scorer(shape: str = "llama", *, seed: int = 0) -> PreTrainedModel:
    """The same under a scalar head."""
    config = tiny(shape).config
    config.num_labels = 1
    implementation = config._attn_implementation
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=implementation)
    without_dropout(model)
    return stirred(model.eval(), seed).double()


def stirred(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=random).to(parameter.dtype)
    return model


def comparisons(num: int, num_responses: int, seed: int = 0, longest: int = 8) -> list[Comparison]:
    """Random tokens in prompts and responses of 1 to `longest` tokens; the first has a single token everywhere."""
    random = np.random.default_rng(seed)

    def tokens(size: int) -> np.ndarray:
        return random.integers(2, VOCABULARY, size, dtype=np.int32)

    def one(index: int) -> Comparison:
        sizes = np.ones(num_responses + 1, int) if index == 0 else random.integers(1, longest + 1, num_responses + 1)
        return Comparison(tokens(sizes[0]), tuple(tokens(size) for size in sizes[1:]))

    return [one(index) for index in range(num)]


def stored(
    folder: Path,
    pairs: Sequence[Comparison],
    scores: Sequence[list[float]] | None = None,
    prompts: Sequence[int] | None = None,
) -> Store:
    """The comparisons as a token store; every prompt differs unless `prompts` says which are equal."""
    with StoreWriter(folder, num_responses=len(pairs[0].responses), scored=scores is not None) as writer:
        for row, one in enumerate(pairs):
            responses = [response.tolist() for response in one.responses]
            row_scores = None if scores is None else scores[row]
            writer.add(
                one.prompt.tolist(), responses, row=row, prompt=prompts[row] if prompts else row, scores=row_scores
            )
    return Store.open(folder)


def measured(model: nn.Module, compute: Callable[[], Values]) -> Values:
    """What `compute` finds, and the gradient of its "loss" with respect to every parameter."""
    model.zero_grad()
    results = compute()
    results["loss"].backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    missing = [name for name, gradient in gradients.items() if gradient is None]
    assert not missing, f"no gradient reached {missing}"
    return {name: value.detach().clone() for name, value in {**results, **gradients}.items()}


def distance(values: Values, expected: Values) -> float:
    """The largest difference of any value or gradient."""
    assert values.keys() == expected.keys()
    return max((values[name] - expected[name]).abs().max().item() for name in expected)


def weights(num: int) -> Tensor:
    """A weight for each token, so that a loss distinguishes all of them: [T]."""
    return torch.randn(num, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def naive_rewards(model: PreTrainedModel, pairs: Sequence[Comparison]) -> Tensor:
    """Rewards [B, K] the obvious way: each response alone in a padded row, the head read at its last real token."""
    tokens, mask, _ = padded_rows(pairs)
    with transformers_attention(model):
        states = model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    last = states[torch.arange(len(tokens)), mask.sum(1) - 1]
    return model.score(last).view(len(pairs), -1)


def naive_values(models: Sequence[PreTrainedModel], pairs: Sequence[Comparison]) -> Tensor:
    """[B, K, H]: each head alone on each response alone."""
    columns = []
    for model in models:
        rows = model.score.weight.data
        for row in rows:
            model.score.weight.data = row[None]
            columns.append(naive_rewards(model, pairs))
        model.score.weight.data = rows
    return torch.stack(columns, -1)
