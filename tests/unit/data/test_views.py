"""Pairs taken apart without copying a token, and partners from other prompts that no batch decides."""

from pathlib import Path

import numpy as np
import pytest
import torch

from artifacts import cache_of
from comparisons import comparisons, stored, tiny
from prefdag.data.token_store import Store
from prefdag.data.views import Mismatched, Unpaired
from prefdag.errors import UserError
from prefdag.models.logprobs import logprobs
from prefdag.models.packing import num_tokens
from prefdag.models.repeats import iter_packed
from prefdag.provenance.manifest import read_manifest
from prefdag.training.reference_cache import ReferenceCache


@pytest.fixture(params=[2, 4])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    num = request.param
    scores = [[row - 0.5 * k for k in range(num)] for row in range(20)]
    return stored(tmp_path / "store", comparisons(20, num), scores, [row // 3 for row in range(20)])


def test_each_response_is_an_example(store: Store) -> None:
    """Comparison 3 of K = 2 becomes examples 6, desirable, and 7, undesirable; no token is copied."""
    view, num = Unpaired(store), store.num_responses
    assert len(view) == 20 * num and view.num_responses == 1
    assert view.labels.tolist() == [True, *[False] * (num - 1)] * 20
    assert view.rows.tolist() == [row for row in range(20) for _ in range(num)]
    assert view.prompts.tolist() == [row // 3 for row in range(20) for _ in range(num)]
    assert view.scores.tolist() == [[row - 0.5 * k] for row in range(20) for k in range(num)]
    for index in (0, 3 * num, 3 * num + 1, len(view) - 1):
        whole, one = store[index // num], view[index]
        assert len(one.responses) == 1 and np.array_equal(one.prompt, whole.prompt)
        assert np.array_equal(one.responses[0], whole.responses[index % num])
        assert np.shares_memory(one.prompt, store.tokens) and np.shares_memory(one.responses[0], store.tokens)
    assert view.lengths().tolist() == [num_tokens(view[index]) for index in range(len(view))]


@torch.no_grad()
def test_the_pairs_reference_cache_serves_it(store: Store, tmp_path: Path) -> None:
    """Every response's cached log-probs are those of running it alone, to float32."""
    model, view = tiny(dtype=torch.float32), Unpaired(store)
    cache_of(tmp_path / "reference", model, store)
    cache = ReferenceCache(read_manifest(tmp_path / "reference/manifest.json").file("train.npy"), view)
    assert cache.verify(model, view) < 1e-5
    for ids, segments in iter_packed(view, 60):
        assert (logprobs(model, segments).tokens - cache(ids, segments).tokens).abs().max() < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_partners_are_a_permutation_of_the_view_with_other_prompts(store: Store, seed: int) -> None:
    view = Unpaired(store)
    crossed = Mismatched(view, seed)
    prompts = view.prompts
    assert sorted(crossed.partner) == list(range(len(view)))
    assert (prompts[crossed.partner] != prompts).all()
    assert np.array_equal(Mismatched(view, seed).partner, crossed.partner), "a pure function of seed and prompts"
    assert not np.array_equal(Mismatched(view, seed + 1).partner, crossed.partner)
    one = crossed[7]
    assert np.array_equal(one.prompt, view[7].prompt)
    assert np.array_equal(one.responses[0], view[int(crossed.partner[7])].responses[0])


def test_a_prompt_may_have_half_of_the_examples_and_no_more(tmp_path: Path) -> None:
    """Of 4 pairs, 2 of one prompt: 4 of 8 examples, each gets a partner; with 3 pairs 6 of 8, which none can be."""
    pairs = comparisons(4, 2)
    view = Unpaired(stored(tmp_path / "half", pairs, prompts=[0, 0, 1, 2]))
    assert (view.prompts[Mismatched(view, 0).partner] != view.prompts).all()
    view = Unpaired(stored(tmp_path / "more", pairs, prompts=[0, 0, 0, 1]))
    with pytest.raises(UserError, match="reads responses to other prompts, but 6 of the 8 examples answer one and the"):
        _ = Mismatched(view, 0).partner
