"""The output head by chunks, and the divergence of two policies, against brute force."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from comparisons import EOS, Values, comparisons, distance, measured, tiny
from padded_path import of_tokens
from prefdag.config.sections.sampling import Sampling
from prefdag.data.token_store import Comparison
from prefdag.models.generation import sample
from prefdag.models.logprobs import LogProbs, divergence, hidden_states, logprobs, token_logprobs
from prefdag.models.naive import transformers_attention
from prefdag.models.packing import pack

ORACLES = Path(__file__).parents[2] / "golden/preference_losses.json"


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 50 * 3, 4 * 50 * 1000])
def test_a_chunked_head_equals_the_whole_one(chunk_bytes: int) -> None:
    """One token at a time, three at a time, all at once: values and every gradient, recomputed or saved."""
    model, pairs = tiny("qwen2 untied"), comparisons(6, 2)
    segments = pack(pairs)

    def chunked() -> Values:
        states = hidden_states(model, segments, segments.predicting)
        tokens = token_logprobs(states, segments.target, model.lm_head, chunk_bytes)
        return of_tokens(LogProbs(tokens, segments.owner, segments.shape))

    whole = measured(model, lambda: of_tokens(logprobs(model, segments)))
    assert distance(measured(model, chunked), whole) < 1e-12


def test_token_logprobs_of_given_logits() -> None:
    """Logits 0 and ln 3: the second token has probability 3 / 4, the first 1 / 4."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    values = token_logprobs(logits, torch.tensor([1, 0]), lambda states: states)
    assert values.exp().tolist() == pytest.approx([0.75, 0.25])


def test_log_ratios_are_subtracted_before_they_are_summed() -> None:
    """4,000 tokens of -2.5 against -2.5 + 2^-16 in float32: sums of differences are exact, differences of sums not."""
    owner = torch.zeros(4000, dtype=torch.int64)
    policy = LogProbs(torch.full((4000,), -2.5), owner, (1, 1))
    reference = LogProbs(torch.full((4000,), -2.5 + 2.0**-16), owner, (1, 1))
    assert (policy - reference).total.item() == pytest.approx(-4000 * 2.0**-16, rel=1e-5)
    assert abs((policy.total - reference.total).item() + 4000 * 2.0**-16) > 1e-5


@pytest.mark.parametrize("name", ["g1", "g2"])
def test_token_logprobs_of_a_peer(name: str) -> None:
    """Sums, averages, counts and the gradient by the logits, of eric-mitchell's _get_batch_logps."""
    oracles = json.loads(ORACLES.read_text())
    case = oracles["fixtures"]["logits"][name]
    (expected,) = [case["expected"] for case in oracles["cases"] if case["id"] == f"batch_logps|{name}|"]
    logits = torch.tensor(case["policy_logits"], dtype=torch.float64, requires_grad=True)
    tokens, ends = torch.tensor(case["input_ids"]), torch.tensor(case["attention_mask"]).sum(1)
    prompts = torch.as_tensor(case["prompt_len"]).expand(len(tokens))
    places = [(row, at) for row in range(len(tokens)) for at in range(int(prompts[row]), int(ends[row]))]
    rows, at = torch.tensor(places).T
    policy = LogProbs(
        token_logprobs(logits[rows, at - 1], tokens[rows, at], lambda states: states), rows, (len(tokens), 1)
    )
    policy.total.sum().backward()
    assert policy.total.flatten().tolist() == pytest.approx(expected["loss"], abs=1e-9)
    assert policy.mean.flatten().tolist() == pytest.approx(expected["mean"], abs=1e-9)
    assert policy.count.flatten().tolist() == expected["n"]
    assert torch.allclose(logits.grad, torch.tensor(expected["grad"]["policy_logits"], dtype=torch.float64), atol=1e-9)


def full_distributions(model: PreTrainedModel, pairs: Sequence[Comparison]) -> list[Tensor]:
    """log p over the vocabulary at each response token, [tokens, V], a response at a time and nothing padded."""
    parts = []
    for one in pairs:
        for response in one.responses:
            tokens = torch.from_numpy(np.concatenate([one.prompt, response]).astype(np.int64))[None]
            with torch.no_grad(), transformers_attention(model):
                logits = model(input_ids=tokens, use_cache=False).logits[0]
            parts.append(logits[len(one.prompt) - 1 : -1].log_softmax(-1))
    return parts


@pytest.mark.parametrize("shape", ["gpt2", "gpt_neox"])
def test_divergence_equals_brute_force(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over the vocabulary of p (log p - log q) at each token, chunked into three tokens or whole."""
    policy, reference, pairs = tiny(shape), tiny(shape, seed=1), comparisons(5, 2)
    p, q = (torch.cat(full_distributions(model, pairs)) for model in (policy, reference))
    targets = torch.from_numpy(np.concatenate([r for one in pairs for r in one.responses]).astype(np.int64))[:, None]
    for chunk_bytes in (4 * 100 * 3, 1 << 20):
        monkeypatch.setattr("prefdag.models.logprobs.CHUNK_BYTES", chunk_bytes)
        tokens = divergence(policy, reference, pack(pairs, [[0, 2], [1, 4], [3]]))
        assert (tokens.kl - (p.exp() * (p - q)).sum(-1)).abs().max() < 1e-9
        assert (tokens.policy - p.gather(1, targets)[:, 0]).abs().max() < 1e-9
        assert (tokens.reference - q.gather(1, targets)[:, 0]).abs().max() < 1e-9
        assert tokens.kl.min() > 0


def test_divergence_of_equal_models_is_zero() -> None:
    """Not merely small: every bit of both computations is the same."""
    tokens = divergence(tiny(dtype=torch.float32), tiny(dtype=torch.float32), pack(comparisons(5, 2)))
    assert torch.equal(tokens.kl, torch.zeros_like(tokens.kl))
    assert torch.equal(tokens.policy, tokens.reference)


def test_k1_agrees_with_the_full_divergence_on_the_policys_own_samples() -> None:
    """Both estimate the same sequence KL; k1's mean over 1,500 samples is within 4 standard errors of the other's."""
    policy, reference = (tiny("gpt2", seed=seed, dtype=torch.float32) for seed in (0, 1))
    settings = Sampling(num_samples=500, max_new_tokens=6, batch_size=500)
    prompts = [[3, 4], [5], [6, 7, 8]]
    samples = list(sample(policy, prompts, [0, 1, 2], settings, EOS))
    made = [Comparison(np.array(prompts[one.prompt]), (np.array(one.ids),)) for one in samples]
    segments = pack(made)
    tokens = divergence(policy, reference, segments)
    kl, k1 = (
        LogProbs(values.double(), segments.owner, segments.shape).total[:, 0]
        for values in (tokens.kl, tokens.policy - tokens.reference)
    )
    gap = k1 - kl
    error = gap.std().item() / math.sqrt(len(gap))
    assert abs(gap.mean().item()) < 4 * error
    assert kl.mean() > 10 * error, "the policies are too close for the comparison to mean anything"
