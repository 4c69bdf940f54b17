"""The segment path equals the padded, full-softmax path: values, losses and every gradient, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from comparisons import (
    ARCHITECTURES,
    SHAPES,
    Values,
    comparisons,
    distance,
    measured,
    stored,
    tiny,
    tiny_scorer,
)
from padded_path import PACKINGS, TOLERANCE, logprob_distance, of_loss, reward_distance
from prefdag.data.token_store import Comparison
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.naive import float64_norms, naive_logprobs
from prefdag.models.packing import num_tokens, pack
from prefdag.models.repeats import iter_packed
from prefdag.training.supervised_task import mean_nll, supervised_task
from registry import ROWS, example_for, named


@pytest.fixture(autouse=True)
def _float64_norms():
    with float64_norms():
        yield


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("num_responses", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_logprobs_and_gradients_equal_the_padded_path(shape: str, num_responses: int, packing: str) -> None:
    batch = comparisons(6, num_responses, seed=num_responses)
    assert logprob_distance(tiny(shape), batch, pack(batch, PACKINGS[packing])) < TOLERANCE


def test_a_layers_own_scale_is_kept() -> None:
    """GPT-2 can scale attention by its layer's number; another scale than 1 / sqrt(d) must reach the scores."""
    model, batch = tiny("gpt2"), comparisons(6, 2)
    model.base_model.h[1].attn.scaling /= 2
    assert logprob_distance(model, batch, pack(batch, PACKINGS["shuffled"])) < TOLERANCE
    assert (logprobs(model, pack(batch)).tokens - logprobs(tiny("gpt2"), pack(batch)).tokens).abs().max() > 1e-3


@pytest.mark.parametrize("row", ROWS, ids=named)
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_every_loss_and_its_gradients_equal_the_padded_path(shape: str, row: dict[str, Any]) -> None:
    """A loss is a function of log-probs, which are equal for every architecture."""
    batch = comparisons(6, example_for(row).policy.shape[1], seed=7)
    with torch.no_grad():
        reference = naive_logprobs(tiny(shape, seed=1), batch)
    segments = pack(batch, PACKINGS["shuffled"])
    assert logprob_distance(tiny(shape), batch, segments, of_loss(row, reference)) < TOLERANCE


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rewards_and_gradients_equal_each_response_alone(shape: str, packing: str) -> None:
    batch = comparisons(6, 2, seed=3)
    assert reward_distance(tiny_scorer(shape), batch, pack(batch, PACKINGS[packing])) < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_supervised_loss_equals_the_padded_path(shape: str, tmp_path) -> None:
    """SFT: the negative log-likelihood of the step's response tokens over their number."""
    model, batch = tiny(shape), comparisons(6, 1)
    task = supervised_task(model, stored(tmp_path, batch))

    def fast() -> Values:
        each, _ = task.losses(range(6), pack(batch, PACKINGS["shuffled"]))
        return {"loss": each.sum() / task.normaliser(range(6))}

    assert distance(measured(model, fast), measured(model, lambda: _nll(naive_logprobs(model, batch)))) < TOLERANCE


def _nll(policy: LogProbs) -> Values:
    return {"loss": -policy.tokens.mean()}


def test_held_out_nll_is_the_mean_over_tokens(tmp_path) -> None:
    """Not the mean of responses' means: the responses' lengths differ, and so do the two means."""
    model, batch = tiny(), comparisons(9, 1)
    naive = naive_logprobs(model, batch)
    assert mean_nll(model, stored(tmp_path, batch), 40) == pytest.approx(-naive.tokens.mean().item(), abs=1e-12)
    assert abs(naive.tokens.mean() - naive.mean.mean()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_a_response_depends_on_its_prompt_and_itself_alone(
    shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradient of each response's log-prob by every input embedding: exactly zero for siblings, other comparisons and
    padding, and not zero for its own prompt and for all of its own tokens but the last, which predicts nothing.
    """
    model, batch = tiny(shape, dtype=dtype), comparisons(4, 3, seed=5)
    segments = pack(batch, [[2, 0], [3, 1]])
    inputs: list[Tensor] = []

    def as_leaf(embedding: torch.nn.Embedding, ids: Tensor) -> Tensor:
        inputs.append(embedding(ids).detach().requires_grad_())
        return inputs[-1]

    monkeypatch.setattr("prefdag.models.logprobs.embed", as_leaf)
    total = logprobs(model, segments).total
    flat = torch.arange(segments.tokens.numel()).view(segments.tokens.shape)
    for b in range(4):
        for k in range(3):
            (gradient,) = torch.autograd.grad(total[b, k], inputs[0], retain_graph=True)
            touched = gradient.abs().sum(-1) > 0
            seen = (segments.comparison == b) & ((segments.response == 0) | (segments.response == k + 1))
            assert torch.equal(touched, seen & (flat != segments.last[b, k]))


def test_eight_at_once_equal_eight_of_one() -> None:
    model, batch = tiny(), comparisons(8, 2)
    together = logprobs(model, pack(batch, [[0, 1, 2, 3], [4, 5, 6, 7]])).total
    alone = torch.cat([logprobs(model, pack([one])).total for one in batch])
    assert (together - alone).abs().max() < 1e-12


@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_order_padding_and_packing_do_not_matter(shape: str) -> None:
    """Shuffled, packed more densely, and with a comparison that pads all others to three times their length."""
    model, batch = tiny(shape), comparisons(6, 2)
    expected = logprobs(model, pack(batch)).total
    order = [4, 2, 5, 0, 3, 1]
    shuffled = logprobs(model, pack([batch[index] for index in order], [[3, 1, 0], [5], [4, 2]])).total
    assert (shuffled - expected[order]).abs().max() < 1e-12
    padded = logprobs(model, pack([*batch, *comparisons(2, 2, seed=9, longest=20)[1:]])).total[:6]
    assert (padded - expected).abs().max() < 1e-12
    for budget in (1, 30, 60, 1000):
        for ids, segments in iter_packed(batch, budget):
            assert (logprobs(model, segments).total - expected[ids]).abs().max() < 1e-12


def test_packed_yields_every_comparison_once_beyond_a_block(monkeypatch) -> None:
    monkeypatch.setattr("prefdag.models.repeats.BLOCK", 5)
    batch = comparisons(13, 2)
    ids = [index for taken, _ in iter_packed(batch, 60) for index in taken]
    assert sorted(ids) == list(range(13))
    for taken, segments in iter_packed(batch, 60):
        assert len(segments.target) == sum(len(r) for index in taken for r in batch[index].responses)
        assert segments.tokens.numel() <= max(60, max(num_tokens(batch[index]) for index in taken))


def test_segments_of_one_comparison_by_hand() -> None:
    """Prompt 5 6, responses 7 8 and 9: the 6 at column 1 predicts both the 7 and the 9, and 9 has position 2."""
    segments = pack([Comparison(np.array([5, 6]), (np.array([7, 8]), np.array([9])))])
    assert segments.tokens.tolist() == [[5, 6, 7, 8, 9]]
    assert segments.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert segments.response.tolist() == [[0, 0, 1, 1, 2]]
    assert segments.predictor.tolist() == [1, 2, 1]
    assert segments.target.tolist() == [7, 8, 9]
    assert segments.owner.tolist() == [0, 0, 1]
    assert segments.last.tolist() == [[3, 4]]
    seen = ["#....", "##...", "###..", "####.", "##..#"]
    assert ["".join(".#"[int(v)] for v in line) for line in segments.mask[0, 0]] == seen
