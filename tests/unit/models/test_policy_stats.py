"""Log-probs, entropy and KL of one pass over the logits, against plain log-softmaxes."""

import pytest
import torch
from torch import Tensor

from comparisons import VOCABULARY, comparisons, tiny
from prefdag.models import policy_stats
from prefdag.models.ops import statistics, vocabulary
from prefdag.models.packing import pack
from prefdag.models.policy_stats import measured, states_of

TEMPERATURE = 0.7


def plain(states: Tensor, others: Tensor, heads: list[torch.nn.Module], target: Tensor) -> list[Tensor]:
    p, q = ((head(part) / TEMPERATURE).log_softmax(-1) for head, part in zip(heads, (states, others), strict=True))
    at = target[:, None]
    return [
        p.gather(-1, at).squeeze(-1),
        -(p.exp() * p).sum(-1),
        q.gather(-1, at).squeeze(-1),
        (p.exp() * (p - q)).sum(-1),
    ]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bytes_at_a_time", [None, 8 * VOCABULARY * 3])
def test_one_pass_equals_plain_log_softmaxes(
    bias: bool, bytes_at_a_time: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bytes_at_a_time is not None:  # blocks of the policy's, the reference's and the cache's that do not align
        monkeypatch.setitem(vocabulary.BLOCK_BYTES, "cpu", 2 * bytes_at_a_time // 3)
        monkeypatch.setitem(statistics.CHUNK_BYTES, "cpu", bytes_at_a_time)
        monkeypatch.setitem(policy_stats.CHUNK_BYTES_OF, "cpu", 3 * bytes_at_a_time)
    model, reference = tiny("llama"), tiny("llama", seed=1)
    torch.manual_seed(1)
    for each in (model, reference):
        head = each.get_output_embeddings()
        head.weight.data += 0.5 * torch.randn_like(head.weight)
        if bias:
            head.bias = torch.nn.Parameter(torch.randn(len(head.weight), dtype=torch.float64))
    segments = pack(comparisons(3, 4))
    states = states_of(model, segments).detach().requires_grad_()
    others = states_of(reference, segments).detach()
    result = measured(model, states, segments.target, TEMPERATURE, (reference, others))
    heads = [each.get_output_embeddings() for each in (model, reference)]
    expected = plain(states, others, heads, segments.target)
    assert result.reference is not None and result.kl is not None
    for one, other in zip((result.logprobs, result.entropy, result.reference, result.kl), expected, strict=True):
        assert (one - other).abs().max() < 1e-9
    weights = torch.randn(len(segments.target), dtype=torch.float64)
    leaves = [states, *heads[0].parameters()]
    pairs = [torch.autograd.grad((values * weights).sum(), leaves) for values in (result.logprobs, expected[0])]
    for one, other in zip(*pairs, strict=True):
        assert (one - other).abs().max() < 1e-9
    alone = measured(model, states, segments.target, TEMPERATURE)
    assert alone.kl is None and alone.reference is None and torch.equal(alone.entropy, result.entropy)


def test_capped_logits_are_measured_as_the_model_computes_them() -> None:
    model, reference = tiny("llama"), tiny("llama", seed=1)
    segments = pack(comparisons(2, 3))
    states, others = states_of(model, segments).detach() * 40, states_of(reference, segments).detach() * 30

    def capped(head: torch.nn.Module) -> torch.nn.Module:
        return lambda part: torch.tanh(head(part) / 2) * 2  # type: ignore[return-value]

    for each in (model, reference):
        each.config.final_logit_softcapping = 2.0
    heads = [capped(each.get_output_embeddings()) for each in (model, reference)]
    result = measured(model, states, segments.target, TEMPERATURE, (reference, others))
    expected = plain(states, others, heads, segments.target)
    assert result.reference is not None and result.kl is not None
    for one, other in zip((result.logprobs, result.entropy, result.reference, result.kl), expected, strict=True):
        assert (one - other).abs().max() < 1e-9
