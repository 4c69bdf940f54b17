"""Gold labels of a round's samples: the budget, the choice of pairs, ties, and what labels them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from judge_server import judging
from prefdag.config.sections.gold import Gold
from prefdag.data.joined import join_stores
from prefdag.data.token_store import Store, StoreWriter
from prefdag.errors import UserError
from prefdag.provenance.journal import Journal
from prefdag.runtime.stage import Workspace
from prefdag.stages.gold import Job, choose_pairs, run

REWARD = "def length(prompts, responses):\n    return [{}(len(text)) for text in responses]\n"
JUDGE = {"model": "m", "prompt": "summarisation-simple", "attempts": 1, "concurrency": 1}


def samples(num_prompts: int, num: int, *, unfinished: tuple[int, ...] = (), alike: bool = False) -> list[dict]:
    """Return lines of generations.jsonl; a response has as many letters as its number says, or all have one."""
    return [
        {"prompt_id": prompt, "sample": number, "prompt": f"p{prompt}", "split": "train", "prompt_ids": [1, prompt]}
        | {"response": "a" if alike else "a" * (number + 1), "ids": [prompt, number], "ended": number not in unfinished}
        for prompt in range(num_prompts)
        for number in range(num)
    ]


def job_of(num_pairs: int, *, seed: int = 0, number: int = 1, **gold: Any) -> Job:
    values = {"num_pairs": num_pairs, "by": "vader", **gold}
    return Job.parse({"gold": values, "seed": seed, "round": number, "threads": 1}, "test")


def label(folder: Path, rows: list[dict], job: Job) -> tuple[dict[str, Any], list[dict]]:
    """Run the stage; return its facts and the lines of pairs.jsonl."""
    output = folder / f"out{len(list(folder.glob('out*')))}"
    output.mkdir()
    (folder / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    journal = Journal(folder / f"{output.name}.jsonl", root=folder, stage="gold", name="x@round1")
    workspace = Workspace("gold", "x@round1", output, folder / "resume", journal, {})
    facts = run(job, workspace, generations=folder / "manifest.json")
    return facts, [json.loads(line) for line in (output / "pairs.jsonl").read_text().splitlines()]


def user_reward(folder: Path, function: str = "float") -> str:
    (folder / "mine.py").write_text(REWARD.format(function))
    return f"{folder}/mine.py:length"


def test_a_larger_budget_labels_the_same_pairs_and_more():
    rows = samples(6, 4)

    def chosen(num: int, **keys: Any) -> list[tuple[int, set[int]]]:
        pairs = choose_pairs(rows, job_of(num, **keys))
        return [(one["prompt_id"], {one["sample"], other["sample"]}) for one, other in pairs]

    every = chosen(100)
    assert len(every) == 12 and chosen(5) == every[:5]
    assert {prompt for prompt, _ in every[:6]} == set(range(6)), "each prompt once before any a second time"
    for prompt in range(6):  # disjoint
        assert set.union(*(pair for number, pair in every if number == prompt)) == {0, 1, 2, 3}
    assert chosen(100, number=2) != every != chosen(100, seed=1)


def test_unfinished_and_repeated_samples_get_no_label():
    rows = samples(3, 4, unfinished=(0, 2))
    assert {pair[side]["sample"] for pair in choose_pairs(rows, job_of(9)) for side in (0, 1)} == {1, 3}
    assert choose_pairs(samples(3, 4, alike=True), job_of(9)) == []


def test_the_better_gold_score_is_chosen(tmp_path: Path):
    facts, pairs = label(tmp_path, samples(5, 2), job_of(3, by=user_reward(tmp_path)))
    assert facts == {"labelled": 3, "pairs": 3, "tied": 0}
    assert [pair["samples"] for pair in pairs] == [[1, 0]] * 3 and pairs[0]["scores"] == [2.0, 1.0]
    store = Store.open(tmp_path / "out0/train")
    assert [int(store[row].responses[0][1]) for row in range(3)] == [1, 1, 1]
    assert [int(store[row].prompt[1]) for row in range(3)] == [pair["prompt_id"] for pair in pairs]


def test_ties_count_against_the_budget(tmp_path: Path):
    facts, pairs = label(tmp_path, samples(5, 2), job_of(4, by=user_reward(tmp_path, "0 * float")))
    assert facts == {"labelled": 4, "pairs": 0, "tied": 4} and pairs == []
    assert len(Store.open(tmp_path / "out0/train")) == 0


def test_bradley_terry_labels_are_drawn(tmp_path: Path):
    """Gold scores differ by 1, so the better one is chosen with probability s(1) = 0.731."""
    job = job_of(2000, by=user_reward(tmp_path), labels="bradley_terry")
    _, pairs = label(tmp_path, samples(2000, 2), job)
    share = np.mean([pair["samples"] == [1, 0] for pair in pairs])
    probability = 1 / (1 + math.exp(-1))
    assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / 2000)
    assert label(tmp_path, samples(2000, 2), job)[1] == pairs


def test_labels_differ_between_prompts_rounds_and_seeds(tmp_path: Path):
    """The same 60 pairs: labels that follow from the scores alone, or from a number of all rounds, would be equal."""

    def labels(**keys: int) -> tuple[bool, ...]:
        job = job_of(60, by=user_reward(tmp_path), labels="bradley_terry", **keys)
        pairs = label(tmp_path, samples(60, 2), job)[1]
        return tuple(pair["samples"] == [1, 0] for pair in sorted(pairs, key=lambda pair: pair["prompt_id"]))

    every = [labels(), labels(number=2), labels(seed=1)]
    assert len(set(every)) == 3 and all(set(each) == {True, False} for each in every)


def test_what_cannot_be_labelled_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"gold x@round1: prompt \d sample \d: .*mine.py:length scored nan"):
        label(tmp_path, samples(3, 2), job_of(2, by=user_reward(tmp_path, "float('nan') * ")))
    with pytest.raises(UserError, match="no training prompt has two samples that differ"):
        label(tmp_path, samples(3, 2, alike=True), job_of(2))
    (tmp_path / "mine.py").write_text("def length(prompts, responses):\n    return [1.0]\n")
    with pytest.raises(UserError, match=r"returned values of shape \[1\] for 4 responses"):
        label(tmp_path, samples(3, 2), job_of(2, by=f"{tmp_path}/mine.py:length"))


def test_a_judge_that_fails_is_asked_only_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It prefers the longer answer in both orders. The first attempt ends after three of eight questions."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    job = job_of(4, by="judge", judge=JUDGE)
    with judging() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.address)
        server.faults = [*([None] * 3), 401]  # type: ignore[list-item]
        with pytest.raises(UserError) as mistake:
            label(tmp_path, samples(4, 2), job)
        assert "\n" not in str(mistake.value)
        answered = server.answered
        assert 3 <= answered < 8
        facts, pairs = label(tmp_path, samples(4, 2), job)
        assert server.answered == 8
    assert facts == {"labelled": 4, "pairs": 4, "tied": 0, "unparsable": 0, "cut": 0, "refused": 0}
    assert [pair["samples"] for pair in pairs] == [[1, 0]] * 4 and pairs[0]["scores"] == [1.0, 0.0]


def test_a_judges_prompt_is_code_of_the_job():
    gold = Gold.parse({"num_pairs": 1, "by": "judge", "judge": {**JUDGE, "prompt": "mine.txt"}}, "test")
    assert gold.user_files() == (Path("mine.txt"),)


def write_store(folder: Path, responses: list[list[list[int]]], scored: bool) -> Store:
    with StoreWriter(folder, num_responses=len(responses[0]) if responses else 2, scored=scored) as writer:
        for row, each in enumerate(responses):
            scores = [1.0] * len(each) if scored else None
            writer.add([9, row], each, row=row, prompt=row, scores=scores)
    return Store.open(folder)


def test_joined_stores_hold_the_comparisons_of_each(tmp_path: Path):
    stores = [
        write_store(tmp_path / "a", [[[1], [2, 3]], [[4, 5], [6]]], scored=True),
        write_store(tmp_path / "b", [], scored=True),
        write_store(tmp_path / "c", [[[7], [8]]], scored=True),
    ]
    joined = join_stores(stores)
    expected = [store[row] for store in stores for row in range(len(store))]
    assert len(joined) == 3 and joined.num_responses == 2 and joined.lengths().tolist() == [5, 5, 4]
    for row, one in enumerate(expected):
        assert joined[row].prompt.tolist() == one.prompt.tolist()
        assert [ids.tolist() for ids in joined[row].responses] == [ids.tolist() for ids in one.responses]
    assert joined.scores is not None and joined.scores.shape == (3, 2)
    assert join_stores([stores[0], write_store(tmp_path / "d", [[[7], [8]]], scored=False)]).scores is None
    with pytest.raises(UserError, match="have 3 responses and those of"):
        join_stores([stores[0], write_store(tmp_path / "e", [[[1], [2], [3]]], scored=True)])
