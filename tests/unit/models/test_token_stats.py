"""Per-token quantities of whole distributions equal the padded path's, without saving any [T, V] beyond a chunk."""

from collections.abc import Iterator

import pytest
import torch

from comparisons import VOCABULARY, Values, comparisons, distance, measured, tiny, weights
from loss_family import distributions
from prefdag.models import logprobs as head
from prefdag.models.naive import float64_norms
from prefdag.models.packing import pack
from prefdag.models.token_stats import PER_TOKEN, TokenStats, token_stats

ROWS = [[0, 3], [5, 1, 2], [4]]
BATCH = comparisons(6, 2)
NUM_TOKENS = sum(len(response) for one in BATCH for response in one.responses)


@pytest.fixture(autouse=True)
def _float64_norms() -> Iterator[None]:
    with float64_norms():
        yield


def weighed(tokens: torch.Tensor, collision: torch.Tensor, divergence: torch.Tensor) -> Values:
    """A loss that every token of each quantity weighs in differently; the collision is only a factor in it."""
    weight = weights(3 * len(tokens)).view(3, -1)
    loss = (tokens * weight[0] * collision.exp()).sum() + (divergence * weight[2]).sum()
    return {"tokens": tokens, "collision": collision, "divergence": divergence, "loss": loss}


def by_segments(stats: TokenStats) -> Values:
    return weighed(stats.policy.tokens, stats.extras["collision"], stats.extras["divergence"])


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 3 * VOCABULARY * 5, 1 << 20])
@pytest.mark.parametrize("shape", ["llama", "gpt2", "gpt_neox", "qwen2 untied"])
def test_values_and_gradients_equal_the_padded_path(shape: str, chunk_bytes: int) -> None:
    """log sum p^2 and sum q (log q - log p) over the vocabulary; a token a chunk, five, or all at once: 1e-9."""
    model, other, segments = tiny(shape), tiny(shape, seed=1), pack(BATCH, ROWS)

    def plain() -> Values:
        p, q = distributions(model, BATCH), distributions(other, BATCH).detach()
        targets = segments.target[:, None]
        return weighed(p.gather(1, targets)[:, 0], (p.detach().exp() ** 2).sum(-1).log(), (q.exp() * (q - p)).sum(-1))

    stats = measured(model, lambda: by_segments(token_stats(model, segments, PER_TOKEN, other, chunk_bytes)))
    assert distance(stats, measured(model, plain)) < 1e-9
    assert all(parameter.grad is None for parameter in other.parameters())


def largest_kept(chunk_bytes: int) -> int:
    """Entries of the largest tensor as wide as the vocabulary that the forward pass keeps for the backward pass."""
    model, other, sizes = tiny(), tiny(seed=1), [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 2 and tensor.shape[1] == VOCABULARY:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_stats(model, pack(BATCH, ROWS), PER_TOKEN, other, chunk_bytes)
    return max(sizes)


def test_no_whole_distribution_is_kept() -> None:
    """In chunks of five tokens nothing of [T, V] is saved; in one chunk it is, so the measurement can fail."""
    assert largest_kept(1 << 20) == NUM_TOKENS * VOCABULARY
    assert largest_kept(4 * 3 * VOCABULARY * 5) == 0


def test_the_fused_head_serves_losses_that_read_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, right = [], head.target_logprobs
    monkeypatch.setattr(head, "target_logprobs", lambda *args: calls.append(1) or right(*args))
    model, segments = tiny(), pack(BATCH, ROWS)
    plain = token_stats(model, segments)
    assert calls == [1] and plain.extras == {}
    both = token_stats(model, segments, PER_TOKEN, tiny(seed=1))
    assert calls == [1] and torch.allclose(both.policy.tokens, plain.policy.tokens, rtol=0, atol=1e-12)


def test_equal_models_diverge_nowhere() -> None:
    stats = token_stats(tiny(), pack(BATCH), {"divergence"}, tiny())
    assert stats.extras.keys() == {"divergence"} and stats.extras["divergence"].abs().max() < 1e-14
    assert token_stats(tiny(), pack(BATCH), {"divergence"}, tiny(seed=1)).extras["divergence"].min() > 0
