"""Attention in tiles, as on a CPU where rows are long: equal to the padded path, and nothing where nothing is seen."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from comparisons import comparisons, tiny
from padded_path import TOLERANCE, Rows, logprob_distance, on_every_case
from prefdag.data.token_store import Comparison
from prefdag.models.attention import interface
from prefdag.models.attention import tiled as tiled_attention
from prefdag.models.attention.interface import masked_lowering, tiled_lowering
from prefdag.models.naive import float64_norms
from prefdag.models.packing import Segments, pack

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Segments, float | None], torch.Tensor]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is in tiles, of 3 queries."""
    monkeypatch.delenv(interface.VARIABLE, raising=False)
    monkeypatch.setattr(tiled_attention, "MIN_LENGTH", 0)
    monkeypatch.setattr(tiled_attention, "TILE", 3)
    monkeypatch.setattr(interface, "masked_lowering", None)


@on_every_case
def test_logprobs_and_gradients_equal_the_padded_path(architecture: str, num_responses: int, rows: Rows, small: None):
    pairs = comparisons(6, num_responses)
    with float64_norms():
        assert logprob_distance(tiny(architecture), pairs, pack(pairs, rows)) < TOLERANCE


def of_lengths(prompt: int, *responses: int) -> Comparison:
    return Comparison(np.arange(prompt), tuple(np.arange(size) for size in responses))


def parts(segments: Segments, dtype: torch.dtype, groups: int = 2, heads: int = 4) -> Parts:
    draw = torch.Generator().manual_seed(0)
    rows, length = segments.tokens.shape

    def normal(heads: int) -> torch.Tensor:
        values = torch.randn(rows, length, heads, 8, generator=draw, dtype=torch.float64).to(dtype)
        return values.transpose(1, 2).requires_grad_()

    return normal(heads), normal(heads // groups), normal(heads // groups)


@pytest.mark.parametrize("lengths", [(300, 40, 40), (20, 90, 200), (1, 64, 128), (63, 1, 1)])
def test_in_float32_it_is_as_near_the_truth_as_the_mask(lengths: tuple[int, int, int]):
    """Rows of real lengths, tiles of the real size: the output and all gradients, each against float64."""
    pairs = [of_lengths(*lengths)] * 3
    segments = pack(pairs, [[0, 1, 2]])
    real = segments.comparison >= 0
    errors = {}
    truth = followed(masked_lowering, segments, torch.float64, real)
    for way in (masked_lowering, tiles_of):
        errors[way] = [
            (values - true).norm()
            for values, true in zip(followed(way, segments, torch.float32, real), truth, strict=True)
        ]
    exact = followed(tiles_of, segments, torch.float64, real)
    for plain, fast, true, wide in zip(errors[masked_lowering], errors[tiles_of], truth, exact, strict=True):
        assert fast <= 2 * plain
        torch.testing.assert_close(wide, true, rtol=1e-12, atol=1e-12)


def tiles_of(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float | None
) -> torch.Tensor:
    """Always in tiles, as in long rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_attention, "MIN_LENGTH", 0)
        return tiled_lowering(query, key, value, segments, scale)


def followed(way: Way, segments: Segments, dtype: torch.dtype, real: torch.Tensor) -> list[torch.Tensor]:
    """The output at real tokens, and gradients of a weighted sum of it."""
    inputs = parts(segments, dtype)
    out = way(*inputs, segments, None)[real]
    weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
    return [out.detach().double(), *(each.double() for each in torch.autograd.grad((out * weights).sum(), inputs))]


def test_what_is_not_seen_has_exactly_no_gradient(small: None):
    """Of a response's output: none for its sibling, for another comparison, or for what comes after it."""
    segments = pack([of_lengths(3, 2, 4), of_lengths(5, 4, 5)], [[0, 1]])
    inputs = parts(segments, torch.float32)
    out = tiled_lowering(*inputs, segments, None)
    at = int(torch.nonzero((segments.comparison[0] == 1) & (segments.response[0] == 2))[1])
    seen = segments.mask[0, 0, at]
    of_query, of_key, of_value = torch.autograd.grad(out[0, at].sum(), inputs)
    for gradient in (of_key, of_value):
        assert not gradient[0][:, ~seen].any() and gradient[0][:, seen].all()
    assert not of_query[0][:, torch.arange(len(seen)) != at].any()


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch):
    """Not in short rows, and not where a layer's probabilities would take too much room."""
    pairs = [of_lengths(100, 100, 100)]
    segments = pack(pairs)
    query = parts(segments, torch.float32)[0]
    assert tiled_attention.is_faster(query, segments)
    # [P | A]: tiles of 64 over 64, 128, 192 keys and 8 over 200; [B]: 64 over 164, 36 over 200.
    size = 4 * 4 * (64 * (64 + 128 + 192) + 8 * 200 + 64 * 164 + 36 * 200)
    monkeypatch.setattr(tiled_attention, "MAX_BYTES", size)
    assert tiled_attention.is_faster(query, segments)
    monkeypatch.setattr(tiled_attention, "MAX_BYTES", size - 1)
    assert not tiled_attention.is_faster(query, segments)
    monkeypatch.undo()
    monkeypatch.setattr(tiled_attention, "MIN_LENGTH", 301)
    assert not tiled_attention.is_faster(query, segments)
