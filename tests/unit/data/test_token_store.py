"""The token store: what goes in comes out, by memory map, and what is no store is refused."""

import errno
import json
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from comparisons import comparisons, stored
from prefdag.data.token_store import Store, StoreWriter
from prefdag.errors import UserError
from prefdag.os_errors import as_sentences

TOKENS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)


@st.composite
def rows(draw: st.DrawFn) -> tuple[int, bool, list]:
    """K, whether there are scores, and comparisons as (prompt, responses, scores)."""
    num_responses, scored = draw(st.integers(1, 4)), draw(st.booleans())
    responses = st.lists(TOKENS, min_size=num_responses, max_size=num_responses)
    scores = st.lists(st.floats(width=32, allow_nan=False), min_size=num_responses, max_size=num_responses)
    return num_responses, scored, draw(st.lists(st.tuples(TOKENS, responses, scores), max_size=8))


@settings(max_examples=60, deadline=None)
@hypothesis.given(rows())
def test_round_trip(generated: tuple[int, bool, list]) -> None:
    num_responses, scored, comparisons = generated
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(Path(folder), num_responses, scored) as writer:
            for index, (prompt, responses, scores) in enumerate(comparisons):
                writer.add(prompt, responses, row=3 * index, prompt=index // 2, scores=scores if scored else None)
        store = Store.open(Path(folder))
        assert (len(store), store.num_responses) == (len(comparisons), num_responses)
        for index, (prompt, responses, _) in enumerate(comparisons):
            assert store[index].prompt.tolist() == prompt
            assert [response.tolist() for response in store[index].responses] == responses
        assert store.rows.tolist() == [3 * index for index in range(len(comparisons))]
        assert store.prompts.tolist() == [index // 2 for index in range(len(comparisons))]
        assert store.lengths().tolist() == [len(p) + sum(map(len, r)) for p, r, _ in comparisons]
        assert np.diff(store.response_starts()).tolist() == [sum(map(len, r)) for _, r, _ in comparisons]
        if scored:
            expected = np.array([s for *_, s in comparisons], np.float32).reshape(-1, num_responses)
            assert np.array_equal(store.scores, expected)
        else:
            assert store.scores is None


def test_a_store_is_opened_by_memory_map_and_reads_nothing(tmp_path: Path) -> None:
    """Opening cannot depend on the size: every array is a map, and a comparison is a view into it."""
    store = stored(tmp_path, comparisons(9, 2))
    for array in (store.tokens, store.offsets, store.rows, store.prompts):
        assert isinstance(array, np.memmap) and not array.flags.writeable
    one = store[4]
    assert all(np.shares_memory(part, store.tokens) for part in (one.prompt, *one.responses))


def test_the_arrays_are_of_the_stated_types(tmp_path: Path) -> None:
    """What any NumPy reads, without this package."""
    stored(tmp_path, comparisons(9, 3))
    types = {path.stem: np.load(path).dtype.name for path in tmp_path.glob("*.npy")}
    assert types == {"tokens": "int32", "offsets": "int64", "rows": "int64", "prompts": "int64"}
    assert np.load(tmp_path / "offsets.npy").shape == (9, 5)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".npy") == ["store.json"]


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        stored(tmp_path / name, comparisons(9, 2))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


@pytest.mark.parametrize("fault", ["no folder", "empty folder", "not JSON", "no tokens", "tokens cut short"])
def test_what_is_no_store_is_refused_in_a_sentence(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    if fault != "no folder":
        stored(folder, comparisons(40, 2))
    match fault:
        case "empty folder":
            for path in folder.iterdir():
                path.unlink()
        case "not JSON":
            (folder / "store.json").write_text("{")
        case "no tokens":
            (folder / "tokens.npy").unlink()
        case "tokens cut short":
            content = (folder / "tokens.npy").read_bytes()
            (folder / "tokens.npy").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"store: not a token store \(.*\); rerun `prepare`"):
        Store.open(folder)


def test_a_writer_that_fails_leaves_no_store(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), StoreWriter(tmp_path, num_responses=1, scored=False) as writer:
        writer.add([1], [[2]], row=1 // 0, prompt=0)
    with pytest.raises(UserError, match="not a token store"):
        Store.open(tmp_path)


@pytest.mark.parametrize(("prompt", "responses"), [([], [[1], [2]]), ([1], [[1], []]), ([1], [[1]])])
def test_a_part_without_tokens_or_another_k_is_refused(
    prompt: list[int], responses: list[list[int]], tmp_path: Path
) -> None:
    with pytest.raises(AssertionError), StoreWriter(tmp_path, num_responses=2, scored=False) as writer:
        writer.add(prompt, responses, row=0, prompt=0)


def test_store_json_says_what_the_store_holds(tmp_path: Path) -> None:
    stored(tmp_path, comparisons(9, 2))
    assert json.loads((tmp_path / "store.json").read_text()) == {"comparisons": 9, "responses": 2, "scored": False}


def test_want_of_memory_is_not_taken_for_a_broken_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(path: Path):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    (tmp_path / "store.json").write_text('{"scored": false}')
    monkeypatch.setattr("prefdag.data.token_store._mapped", refused)
    with (
        pytest.raises(UserError, match="sft of .*: out of memory .*; give the job more"),
        as_sentences("sft", tmp_path),
    ):
        Store.open(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="not a token store"), as_sentences("sft", tmp_path):
        Store.open(tmp_path)
