"""Text statistics of generations."""

import csv
import json
from pathlib import Path

import pytest

from prefdag.errors import UserError
from prefdag.provenance.journal import Journal
from prefdag.runtime.stage import Workspace
from prefdag.stages import score
from prefdag.stages.score import Job, distinct, repetition, run


def test_repetition_is_the_share_of_four_grams_that_came_before():
    """1 2 3 4 1 2 3 4 1: the 4-grams are 1234 2341 3412 4123 1234 2341, four of six are different."""
    assert repetition({"ids": [1, 2, 3, 4, 1, 2, 3, 4, 1]}) == pytest.approx(1 / 3, abs=1e-15)
    assert repetition({"ids": [7] * 10}) == pytest.approx(6 / 7, abs=1e-15)
    assert repetition({"ids": list(range(10))}) == 0
    assert repetition({"ids": [1, 1, 1]}) == 0, "no 4-gram, no repetition"


def test_distinct_counts_different_n_grams():
    """a b a b: two of four words; ab ba ab: two of three pairs."""
    assert distinct([1, 2, 1, 2], 1) == 0.5
    assert distinct([1, 2, 1, 2], 2) == pytest.approx(2 / 3, abs=1e-15)


def test_a_users_function_scores_prompts_and_responses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(score, "_check_weights", lambda *paths: None)  # no weights score here
    Path("mine.py").write_text(
        "def longer(prompts, responses):\n    return [len(b) - len(a) for a, b in zip(prompts, responses)]\n"
    )
    rows = [
        {
            "prompt_id": at,
            "sample": 0,
            "prompt": "ab",
            "response": text,
            "prompt_ids": [1],
            "ids": [2, 3],
            "ended": True,
        }
        for at, text in enumerate(["", "xyz", "xyzzy"])
    ]
    Path("generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "out").mkdir()
    journal = Journal(tmp_path / "journal.jsonl", root=tmp_path, stage="score", name="x@samples1")
    workspace = Workspace("score", "x@samples1", tmp_path / "out", tmp_path / "resume", journal, {})

    def scored(function: str) -> list[float]:
        job = Job.parse({"score": {"reward": "vader", "bootstrap": 10}, "user_reward": f"mine.py:{function}"}, "test")
        assert job.user_files() == (Path("mine.py"),)
        manifest = tmp_path / "manifest.json"
        run(job, workspace, generations=manifest, reference=manifest, implicit=[])
        with Path("out/scores.csv").open(newline="") as stream:
            table = list(csv.DictReader(stream))
        assert "vader" not in table[0]
        return [float(row["reward"]) for row in table]

    assert scored("longer") == [-2, 1, 3]
    with pytest.raises(UserError, match="mine.py: has no function shorter"):
        scored("shorter")
