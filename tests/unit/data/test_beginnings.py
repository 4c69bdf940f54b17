"""No held-out prompt begins a text that a model has read."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdag.config.suite import read_ordinary_suite
from prefdag.data.beginnings import Beginnings
from prefdag.data.rows import read_rows
from prefdag.stages.fetch import _world

ROOT = Path(__file__).parents[3]
TEXTS = st.lists(st.text("ab ", max_size=5), max_size=12)


@given(TEXTS, TEXTS, st.text("ab ", max_size=4))
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
