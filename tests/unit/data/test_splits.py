"""Held-out prompts: their numbers by default, their choice by a hash, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from manifests import bare
from prefdag.config.prepare import Prepare
from prefdag.data.adapters.records import TextComparison
from prefdag.data.splits import default_sizes, held_out_shares, place_of
from prefdag.data.token_store import Store
from prefdag.errors import UserError
from preparing import PREPARE, fetch, prepare, write_rows

DEFAULT = {"validation_fraction": None, "test_fraction": None}
HELD_OUT = ("validation", "test")


def settings(**changes: object) -> Prepare:
    return Prepare.parse({**PREPARE, **DEFAULT, **changes}, "tests")


def comparisons(num: int) -> list[TextComparison]:
    return [TextComparison(f"prompt {n}", ("a", "b")) for n in range(num)]


def sizes(shares: dict[str, float], num: int, seed: int = 0) -> dict[str, int]:
    places = np.array([place_of(f"prompt {n}", seed) for n in range(num)])
    first = int((places < shares["validation"]).sum())
    return {"validation": first, "test": int((places < sum(shares.values())).sum()) - first}


@pytest.mark.parametrize(
    ("num", "validation", "test"), [(6, 1, 2), (20, 1, 2), (59, 3, 6), (200, 10, 20), (10**6, 500, 1000)]
)
def test_default_sizes_by_hand(num: int, validation: int, test: int):
    """A twentieth and a tenth, at least one and two prompts."""
    assert default_sizes(num, HELD_OUT) == {"validation": validation, "test": test}


@pytest.mark.parametrize("num", [*range(6, 40), 200])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_holds_out_exactly_so_many(num: int, seed: int):
    shares = held_out_shares(settings(seed=seed), HELD_OUT, comparisons(num) * 2, "rows")
    assert sizes(shares, num, seed) == default_sizes(num, HELD_OUT)


def test_another_seed_holds_out_other_prompts():
    """Places are uniform and independent of one another between seeds: about a tenth of a tenth is in both."""
    held = [{n for n in range(2000) if place_of(f"prompt {n}", seed) < 0.1} for seed in (0, 1, 2)]
    assert all(150 < len(each) < 250 for each in held)
    assert all(len(one & other) < 45 for one, other in zip(held, held[1:], strict=False))


def test_a_stated_share_is_taken_as_it_is():
    """And the other is counted from where it ends."""
    assert held_out_shares(settings(validation_fraction=0.2, test_fraction=0.3), HELD_OUT, [], "rows") == {
        "validation": 0.2,
        "test": 0.3,
    }
    shares = held_out_shares(settings(validation_fraction=0.2), HELD_OUT, comparisons(100), "rows")
    assert shares["validation"] == 0.2 and sizes(shares, 100)["test"] == 10
    shares = held_out_shares(settings(test_fraction=0.2), HELD_OUT, comparisons(100), "rows")
    assert shares["test"] == 0.2 and sizes(shares, 100)["validation"] == 5


def test_a_split_with_rows_takes_none_of_train():
    assert held_out_shares(settings(), [], comparisons(100), "rows") == {"validation": 0.0, "test": 0.0}
    shares = held_out_shares(settings(), ["validation"], comparisons(100), "rows")
    assert shares["test"] == 0.0 and sizes(shares, 100)["validation"] == 5


@pytest.mark.parametrize(("splits", "num", "fewest"), [(HELD_OUT, 5, 6), (["validation"], 1, 2)])
def test_too_few_prompts_are_refused_with_their_number(splits: list[str], num: int, fewest: int):
    with pytest.raises(UserError, match=rf"rows: {num} different prompts, but at least {fewest} are needed .*; add"):
        held_out_shares(settings(), splits, comparisons(num), "rows")
    held_out_shares(settings(), splits, comparisons(fewest), "rows")


def rows(num: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(num)]


@pytest.mark.parametrize("num", [6, 7, 59, 200])
def test_both_datasets_hold_out_the_same_prompts(num: int, tmp_path: Path):
    """SFT trains on no prompt that the comparisons test."""
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "raw.jsonl", rows(num)))}) == 0
    code, demonstrations = prepare(tmp_path, None, "demonstrations", **DEFAULT)
    assert code == 0
    seen = {"demonstrations": demonstrations / "manifest.json"}
    code, folder = prepare(tmp_path, inputs=seen, **DEFAULT)
    assert code == 0
    expected = default_sizes(num, HELD_OUT)
    assert {split: len(Store.open(folder / split)) for split in HELD_OUT} == expected
    assert (
        len(Store.open(demonstrations / "train")) == len(Store.open(folder / "train")) == num - sum(expected.values())
    )
    assert json.loads((folder / "audit.json").read_text())["shared_prompts"] == {
        "train and SFT's training": num - sum(expected.values())
    }


def test_all_rows_of_a_prompt_are_in_one_split(tmp_path: Path):
    """Six rows of each of 40 prompts, one behind the other's: as many rows a split as prompts times six."""
    many = [{"prompt": f"q {n % 40}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(240)]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "raw.jsonl", many))}) == 0
    code, folder = prepare(tmp_path, **{**DEFAULT, "validation_fraction": 0.3, "test_fraction": 0.3})
    assert code == 0
    stores = {split: Store.open(folder / split) for split in ("train", *HELD_OUT)}
    prompts = {split: {tuple(store[at].prompt) for at in range(len(store))} for split, store in stores.items()}
    assert [len(stores[split]) for split in prompts] == [6 * len(each) for each in prompts.values()]
    assert min(map(len, prompts.values())) > 4 and sum(map(len, prompts.values())) == 40
    expected = {split: set() for split in prompts}
    for n in range(40):
        place = place_of(f"q {n}", PREPARE.get("seed", 0))
        expected["validation" if place < 0.3 else "test" if place < 0.6 else "train"].add(n)
    numbers = {split: {int(row) % 40 for row in store.rows} for split, store in stores.items()}
    assert numbers == expected


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"test_fraction": 0.001},
            "test: the test split has 0 prompts, but needs at least 2; usable rows are train 19, validation 1, test 0; "
            "add rows, raise prepare.test_fraction (now 0.001), or leave it out",
        ),
        (
            {"validation_fraction": 0.001},
            "validation: the validation split has 0 prompts, but needs at least 1; usable rows are train 18, "
            "validation 0, test 2; add rows, raise prepare.validation_fraction (now 0.001), or leave it out",
        ),
        ({"max_prompt_tokens": 1}, "no row of the train split can be used"),
    ],
)
def test_an_empty_split_is_refused_with_the_numbers(
    changes: dict[str, float], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "raw.jsonl", rows(20)))}) == 0
    assert prepare(tmp_path, **{**DEFAULT, **changes})[0] == 2
    assert sentence in capsys.readouterr().err


def test_an_empty_file_of_a_split_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Its rows are there but cannot be used."""
    write_rows(tmp_path / "raw/train.jsonl", rows(20))
    write_rows(tmp_path / "raw/test.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "a"}] * 3)
    assert fetch(tmp_path, {"source": str(tmp_path / "raw"), "train": "train.jsonl", "test": "test.jsonl"}) == 0
    assert prepare(tmp_path, **DEFAULT)[0] == 2
    error = capsys.readouterr().err
    assert "test: the test split has 0 prompts, but needs at least 2; usable rows are train 19, validation 1" in error
    assert f"add rows to {tmp_path / 'out/fetch/data/test.jsonl'}" in error


SAMPLED = {"prompts": 9, "unfinished": 7, "pairs": 3, "ties": 20, "rankings": 1}
ADVICE = (
    "these rows are samples of SFT for 9 prompts: 7 samples were cut off at pairs.max_new_tokens, and 20 pairs of "
    "samples are equal or tie in reward; {} pairs.num_samples, raise pairs.max_prompts or pairs.max_new_tokens, add "
    "prompts, or train SFT for longer"
)


@pytest.mark.parametrize(
    ("num", "shares", "place"),
    [
        (0, {}, "no row of the train split can be used"),
        (1, {}, "train: the train split has 1 prompt, but needs at least 2"),
        (3, DEFAULT, "train.jsonl: 3 different prompts, but at least 6 are needed"),
        (20, {**DEFAULT, "test_fraction": 0.001}, "test: the test split has 0 prompts, but needs at least 2"),
    ],
)
def test_too_few_sampled_rows_are_explained_by_what_was_sampled(
    num: int, shares: dict[str, float], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """`pairs` writes the files, so the advice is keys of the suite."""
    for name in ("train.jsonl", "rankings/train.jsonl"):
        responses = [{"prompt": f"q {n}", "responses": ["yes", "no"], "scores": [1, 0]} for n in range(num)]
        write_rows(tmp_path / "out/fetch/data" / name, responses)
    (tmp_path / "out/fetch/data/manifest.json").write_text(bare("pairs", facts={"train": SAMPLED}))
    assert prepare(tmp_path, **shares)[0] == 2
    error = capsys.readouterr().err
    assert place in error and ADVICE.format("raise") in error and "add rows" not in error
    if num == 0:
        assert prepare(tmp_path, dataset="rankings")[0] == 2
        assert ADVICE.format("lower") in capsys.readouterr().err
