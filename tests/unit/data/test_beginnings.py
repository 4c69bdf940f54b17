"""No held-out prompt begins a text that a model has read."""

from itertools import islice
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

from prefdag.config.prepare import HeldOut
from prefdag.config.suite import read_ordinary_suite, resolve
from prefdag.data.adapters.registry import ADAPTERS, iter_prompts
from prefdag.data.beginnings import Beginnings
from prefdag.data.rows import read_rows, write_rows
from prefdag.data.splits import split_of
from prefdag.data.unseen import UnseenPrompts, iter_read
from prefdag.errors import UserError
from prefdag.stages.fetch import _world

ROOT = Path(__file__).parents[3]
TEXTS = st.lists(st.text("ab ", max_size=5), max_size=12)


@hypothesis.given(TEXTS, TEXTS, st.text("ab ", max_size=4))
def test_membership_is_that_of_a_loop(first: list[str], further: list[str], prompt: str):
    begun = Beginnings(first)
    assert (prompt in begun) == any(text.startswith(prompt) for text in first)
    begun.add(further)
    assert (prompt in begun) == any(text.startswith(prompt) for text in [*first, *further])


@pytest.mark.parametrize("suite", ["quickstart", "objectives"])
def test_no_prompt_of_a_world_begins_a_review(suite: str, tmp_path: Path):
    """The shipped worlds: their numbers of prompts, none of which begins a review or a training prompt."""
    world = read_ordinary_suite([str(ROOT / f"configs/{suite}.yaml")]).data.world
    assert world is not None
    _world(world, tmp_path)
    texts = [row["prompt"] + row["continuation"] for row in read_rows(tmp_path / "train.jsonl")]
    prompts = {
        split: [row["prompt"] for row in read_rows(tmp_path / f"prompts-{split}.jsonl")]
        for split in ("train", "validation", "test")
    }
    assert len(texts) == world.reviews
    assert {split: len(set(some)) for split, some in prompts.items()} == {
        "train": world.train_prompts,
        "validation": world.validation_prompts,
        "test": world.test_prompts,
    }
    for text in texts:
        assert not [prompt for prompt in [*prompts["train"], *prompts["test"]] if text.startswith(prompt)]
    for text in prompts["train"]:
        assert not [prompt for prompt in [*prompts["validation"], *prompts["test"]] if text.startswith(prompt)]


def reviews_of(films: str) -> list[str]:
    """Every three begin with the same three words, every one with a prompt of 2 to 8 words."""
    return [f"{a} {b} c {d} then it went on for hours" for a in films for b in "klmnop" for d in "xyz"]


def imdb_prompt(text: str) -> str:
    return str(ADAPTERS["imdb"]({"text": text}).prompt)


@pytest.mark.parametrize("has_test_file", [False, True])
def test_unseen_prompts_begin_no_text_that_is_read(has_test_file: bool, tmp_path: Path):
    """A loop over every document of pre-training and SFT, for test prompts of train's rows and of a file."""
    texts, most = reviews_of("ABCDEFGH"), 100
    write_rows(tmp_path / "train.jsonl", ({"text": text} for text in texts))
    if has_test_file:
        write_rows(tmp_path / "test.jsonl", ({"text": f"{text} more"} for text in reviews_of("GHIJ")))
    shares = {"validation": 0.1, "test": 0.0 if has_test_file else 0.3}
    documents = list(iter_read("imdb", tmp_path, HeldOut(seed=0, validation=0.1, test=0.3)))
    assert documents == [text for text in texts if split_of(imdb_prompt(text), 0, shares) == "train"]
    unseen = UnseenPrompts("imdb", tmp_path, HeldOut(seed=0, validation=0.1, test=0.3))
    of_rows = list(islice(unseen.select(iter_prompts(tmp_path, "imdb", "train"), "train"), most))
    assert len(of_rows) == most and unseen.num_skipped
    held_out = [text for text in map(str, of_rows) if split_of(text, 0, shares) != "train"]
    if has_test_file:
        of_file = [str(prompt) for prompt in unseen.select(iter_prompts(tmp_path, "imdb", "test"), "test")]
        assert of_file and unseen.num_skipped
        assert len(of_file) + unseen.num_skipped == len(list(iter_prompts(tmp_path, "imdb", "test")))
        assert not [one for one in of_file if any(text.startswith(one) for text in [*documents, *map(str, of_rows)])]
    assert held_out and not [one for one in held_out if any(text.startswith(one) for text in documents)]


def test_a_suite_states_what_unseen_needs():
    imdb = yaml.safe_load((ROOT / "configs/imdb-scratch.yaml").read_text())
    mistakes = {
        "prepare.test_fraction: missing": {"prepare": {**imdb["prepare"], "test_fraction": None}},
        "`unseen` is for pairs that are sampled": {"sft": {"data": {"source": "a.jsonl"}}},
    }
    for sentence, changes in mistakes.items():
        with pytest.raises(UserError, match=sentence):
            resolve({**imdb, **changes}, "suite.yaml")
