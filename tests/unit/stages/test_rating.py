"""A model judge rates the samples of each prompt by comparing them with one another."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from judge_server import judging, shown
from prefdag.errors import UserError
from prefdag.provenance.journal import Journal
from prefdag.runtime.stage import Workspace
from prefdag.stages.rating import Job, mean_verdicts, run

JUDGE = {"model": "m", "prompt": "summarisation-simple", "attempts": 1, "concurrency": 1}
ROWS = [  # prompt, sample, response, ended
    (0, 0, "a", True),
    (0, 1, "aaa", True),
    (0, 2, "aa", True),
    (1, 0, "b", True),
    (1, 1, "b", True),
    (2, 0, "cc", True),
    (2, 1, "c", False),
]


def rate(folder: Path, **judge: Any) -> tuple[dict[str, Any], list[str]]:
    """Run the stage; return its facts and the cells of the scores."""
    output = folder / f"out{len(list(folder.glob('out*')))}"
    output.mkdir()
    rows = [
        {"prompt_id": prompt, "sample": sample, "prompt": f"p{prompt}", "response": text, "ended": ended}
        for prompt, sample, text, ended in ROWS
    ]
    (folder / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    journal = Journal(folder / f"{output.name}.jsonl", root=folder, stage="rating", name="x@samples1")
    workspace = Workspace("rating", "x@samples1", output, folder / "resume", journal, {})
    facts = run(Job.parse({"rating": {"judge": JUDGE | judge}}, "t"), workspace, generations=folder / "manifest.json")
    with (output / "scores.csv").open() as stream:
        return facts, [row["reward"] for row in csv.DictReader(stream)]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    return monkeypatch


def test_a_sample_scores_the_share_of_samples_that_it_beats(tmp_path: Path, environment: pytest.MonkeyPatch):
    """The judge prefers the longer one. Equal texts tie without a question; an unfinished sample has no score."""
    with judging() as server:
        environment.setenv("OPENAI_BASE_URL", server.address)
        facts, scores = rate(tmp_path)
        assert server.answered == 6
    assert scores == ["0.0", "1.0", "0.5", "0.5", "0.5", "", ""]
    assert facts == {"samples": 5, "pairs": 3, "unparsable": 0, "cut": 0, "refused": 0}


def test_a_judge_that_fails_in_the_middle_loses_nothing(tmp_path: Path, environment: pytest.MonkeyPatch):
    with judging() as server:
        environment.setenv("OPENAI_BASE_URL", server.address)
        server.faults = [*([None] * 2), 401]  # type: ignore[list-item]
        with pytest.raises(UserError) as mistake:
            rate(tmp_path)
        assert "\n" not in str(mistake.value) and server.answered == 2
        _, scores = rate(tmp_path)
        assert server.answered == 6 and scores[:3] == ["0.0", "1.0", "0.5"]


def test_an_answer_that_cannot_be_read_leaves_its_pair_out(tmp_path: Path, environment: pytest.MonkeyPatch):
    def answer(question: str) -> str:
        first, second = shown(question)
        if {first, second} == {"a", "aaa"}:
            return "no idea"
        return f"Preferred: {'A' if len(first) > len(second) else 'B'}"

    with judging(answer=answer) as server:
        environment.setenv("OPENAI_BASE_URL", server.address)
        facts, scores = rate(tmp_path)
    assert scores[:3] == ["0.0", "1.0", "0.5"] and facts["unparsable"] == 2


def test_a_judge_that_says_nothing_is_one_sentence(tmp_path: Path, environment: pytest.MonkeyPatch):
    with judging(answer=lambda question: "no idea") as server:
        environment.setenv("OPENAI_BASE_URL", server.address)
        with pytest.raises(UserError, match="judge m: no pair has a verdict in both orders"):
            rate(tmp_path)


def test_mean_verdicts():
    scores = mean_verdicts({(0, 1): 1.0, (0, 2): 0.5, (1, 2): np.nan}, 4)
    assert scores[:3].tolist() == [0.75, 0.0, 0.5] and np.isnan(scores[3])
