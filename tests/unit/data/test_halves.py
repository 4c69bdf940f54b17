"""Halves of a store: they share no prompt, keep every comparison, and read the same tokens."""

from pathlib import Path

import numpy as np
import pytest

from prefdag.data.halves import half_of
from prefdag.data.token_store import Store, StoreWriter
from prefdag.errors import UserError


def store_of(folder: Path, prompts: list[int]) -> Store:
    with StoreWriter(folder, num_responses=2, scored=True) as writer:
        for row, prompt in enumerate(prompts):
            writer.add([prompt + 1], [[row + 1] * 3, [row + 1]], row=row, prompt=prompt, scores=[row, -row])
    return Store.open(folder)


def test_two_halves_are_the_whole(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", [number // 2 for number in range(22)])
    first, second = half_of(store, "first"), half_of(store, "second")
    assert (len(first), len(second)) == (10, 12), "5 and 6 of 11 prompts, two comparisons each"
    assert not set(first.prompts.tolist()) & set(second.prompts.tolist())
    assert sorted([*first.rows, *second.rows]) == list(range(22))
    assert first.rows.tolist() != list(range(10)), "prompts are shuffled"
    for half in (first, second):
        for index, row in enumerate(half.rows.tolist()):
            assert [part.tolist() for part in half[index].responses] == [part.tolist() for part in store[row].responses]
            assert half.scores is not None and half.scores[index].tolist() == [row, -row]
        assert np.array_equal(half.lengths(), np.full(len(half), 5))


def test_one_prompt_cannot_be_halved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one prompt cannot be halved"):
        half_of(store_of(tmp_path / "store", [0, 0]), "first")
