"""Broken twins: what the equality tests must catch, put through the very functions that those tests assert on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import registry
from comparisons import ARCHITECTURES, comparisons, tiny, tiny_scorer
from padded_path import TOLERANCE, logprob_distance, of_loss, reward_distance
from prefdag.models.naive import float64_norms, naive_logprobs
from prefdag.models.packing import Segments, pack
from registry import example_for, named

ROWS = [[0, 3], [5, 1, 2], [4]]
CAUGHT = 1e-3  # six orders of magnitude beyond what the equality tests allow


@pytest.fixture(autouse=True)
def _float64_norms():
    with float64_norms():
        yield


def siblings_visible(segments: Segments) -> Segments:
    """A later response looks at the earlier ones of its comparison."""
    return replace(segments, response=segments.response.clamp(max=1))


def comparisons_visible(segments: Segments) -> Segments:
    """The mask knows rows, not comparisons."""
    return replace(segments, comparison=segments.comparison.clamp(max=0))


def prompt_invisible(segments: Segments) -> Segments:
    """A response looks at itself only."""
    return replace(segments, comparison=segments.comparison * 8 + segments.response)


def future_visible(segments: Segments) -> Segments:
    """The mask is not causal."""
    twin = replace(segments)
    twin.__dict__["mask"] = segments.mask | segments.mask.transpose(-1, -2)
    return twin


def positions_run_on(segments: Segments) -> Segments:
    """Positions count a row's tokens: a later response is further from its prompt than it should."""
    return replace(segments, positions=torch.arange(segments.tokens.shape[1]).expand_as(segments.tokens))


def positions_restart(segments: Segments) -> Segments:
    """Each response starts at position 0 again instead of where its prompt ended."""
    first = torch.zeros_like(segments.positions)
    for owner in range(segments.last.numel()):
        row, column = divmod(int(segments.last.flatten()[owner]), segments.tokens.shape[1])
        size = int((segments.owner == owner).sum())
        first[row, column - size + 1 : column + 1] = segments.positions[row, column - size + 1]
    return replace(segments, positions=segments.positions - first)


def positions_per_row(segments: Segments) -> Segments:
    """Responses continue from their prompts, but a later comparison of a row does not start at 0."""
    column = torch.arange(segments.tokens.shape[1]).expand_as(segments.tokens)
    starts = torch.where(segments.positions == 0, column, 0).cummax(1).values
    return replace(segments, positions=segments.positions + starts)


def branch_at_the_sibling(segments: Segments) -> Segments:
    """The first token of a response is predicted from the token before it, which is a sibling's last."""
    count = torch.bincount(segments.owner)
    start = count.cumsum(0) - count  # of each response in the flat order of targets
    predictor = segments.predictor.clone()
    predictor[start] = segments.last.flatten() - count
    return replace(segments, predictor=predictor)


def predicted_from_itself(segments: Segments) -> Segments:
    """A shift is forgotten: the hidden state of a token predicts that very token."""
    return replace(segments, predictor=segments.predictor + 1)


def siblings_swapped(segments: Segments) -> Segments:
    """Chosen is taken for rejected: no token's value moves, only whose it is."""
    return replace(segments, owner=segments.owner ^ 1)


def read_one_early(segments: Segments) -> Segments:
    """The score head is read one token before the last."""
    return replace(segments, last=segments.last - 1)


def read_at_the_comparisons_end(segments: Segments) -> Segments:
    """The score head is read where the comparison ends, for every response."""
    return replace(segments, last=segments.last[:, -1:].expand_as(segments.last))


MASKS = [siblings_visible, comparisons_visible, prompt_invisible, future_visible]
POSITIONS = [positions_run_on, positions_restart]
READS = [branch_at_the_sibling, predicted_from_itself, siblings_swapped]
Twin = Callable[[Segments], Segments]


@pytest.mark.parametrize("twin", [*MASKS, *POSITIONS, *READS])
@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_logprob_twins_are_caught(shape: str, twin: Twin) -> None:
    result = comparisons(6, 2, seed=7)
    model, segments = tiny(shape), pack(result, ROWS)
    assert logprob_distance(model, result, segments) < TOLERANCE
    assert logprob_distance(model, result, twin(segments)) > CAUGHT


@pytest.mark.parametrize("twin", [*MASKS, *POSITIONS, read_one_early, read_at_the_comparisons_end])
@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_reward_twins_are_caught(shape: str, twin: Twin) -> None:
    result = comparisons(6, 2, seed=7)
    model, segments = tiny_scorer(shape), pack(result, ROWS)
    assert reward_distance(model, result, segments) < TOLERANCE
    assert reward_distance(model, result, twin(segments)) > CAUGHT


@pytest.mark.parametrize("row", [row for row in registry.ROWS if example_for(row).policy.shape[1] > 1], ids=named)
@pytest.mark.parametrize("twin", [siblings_visible, positions_restart, branch_at_the_sibling, siblings_swapped])
def test_every_loss_catches_a_twin(row: dict[str, Any], twin: Twin) -> None:
    """siblings_visible and branch_at_the_sibling leave the chosen alone, so Preferred-FT alone cannot see them."""
    result = comparisons(6, example_for(row).policy.shape[1], seed=7)
    with torch.no_grad():
        reference = naive_logprobs(tiny(seed=1), result)
    off = logprob_distance(tiny(), result, twin(pack(result, ROWS)), of_loss(row, reference))
    blind = row["method"] == "preferred_ft" and twin in (siblings_visible, branch_at_the_sibling)
    assert off < TOLERANCE if blind else off > CAUGHT


@pytest.mark.parametrize(("shape", "caught"), [("gpt2", True), ("llama", False), ("gpt_neox", False), ("qwen2", False)])
def test_a_shifted_comparison_matters_to_absolute_positions_only(shape: str, caught: bool) -> None:
    """Rotary positions are relative: moving a whole comparison changes nothing, which GPT-2 alone can tell."""
    result = comparisons(6, 2, seed=7)
    off = logprob_distance(tiny(shape), result, positions_per_row(pack(result, ROWS)))
    assert off > CAUGHT if caught else off < 1e-4
