"""Text statistics of generations."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, str]]]:
    """A function that scores three responses with a config, and returns the rows of scores.csv."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(score, "_check_weights", lambda *paths: None)  # no weights score here
    texts = ["", "xyz", "xyzzy"]
    common = {"sample": 0, "prompt": "ab", "prompt_ids": [1], "ids": [2, 3], "ended": True}
    rows = [{"prompt_id": at, "response": text, **common} for at, text in enumerate(texts)]
    Path("generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "out").mkdir()
    journal = Journal(tmp_path / "journal.jsonl", root=tmp_path, stage="score", name="x@samples1")
    workspace = Workspace("score", "x@samples1", tmp_path / "out", tmp_path / "resume", journal, {})

    def scored(**config: Any) -> list[dict[str, str]]:
        job = Job.parse({"score": {"reward": "vader", "bootstrap": 10, **config.pop("score", {})}, **config}, "test")
        assert job.user_files() == (Path("mine.py"),)
        manifest = tmp_path / "manifest.json"
        run(job, workspace, generations=manifest, reference=manifest, implicit=[])
        with Path("out/scores.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))

    return scored


LONGER = "def longer(prompts, responses):\n    return [len(b) - len(a) for a, b in zip(prompts, responses)]\n"


def test_a_users_function_scores_prompts_and_responses(scored: Callable[..., list[dict[str, str]]]):
    Path("mine.py").write_text(LONGER)
    table = scored(user_reward="mine.py:longer")
    assert "vader" not in table[0]
    assert [float(row["reward"]) for row in table] == [-2, 1, 3]
    with pytest.raises(UserError, match=r"mine.py: has no function shorter"):
        scored(user_reward="mine.py:shorter")


def test_a_users_metrics_are_the_last_columns(scored: Callable[..., list[dict[str, str]]]):
    """Mean and interval over prompts of -2, 1 and 3 are in the summary."""
    Path("mine.py").write_text(LONGER + "def ones(prompts, responses):\n    return [True] * 3\n")
    table = scored(score={"metrics": ["mine.py:longer", "mine.py:ones"]})
    assert [*table[0]][-2:] == ["longer", "ones"]
    assert [(float(row["longer"]), float(row["ones"])) for row in table] == [(-2, 1), (1, 1), (3, 1)]
    entry = json.loads(Path("out/summary.json").read_text())["longer"]
    assert entry["mean"] == pytest.approx(2 / 3, abs=1e-15) and -2 <= entry["low"] < 2 / 3 < entry["high"] <= 3


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return [1.0]", r"mine.py: f returned values of shape \[1\] for 3 responses; return one number for each"),
        ("return [1, None, 2]", "mine.py: f returned nan for sample 0 of prompt 1 .1 of 3 are not finite.; return a"),
        ("return [1, 2, float('inf')]", "mine.py: f returned inf for sample 0 of prompt 2"),
        ("return ['1', '2', '3']", "mine.py: f returned list of str; return a list of numbers, one for each response"),
        ("return {}", "mine.py: f returned dict; return a list of numbers"),
        ("return (1 for _ in responses)", "mine.py: f returned generator; return a list of numbers"),
        ("return 1 / 0", r"mine.py: f raised ZeroDivisionError: division by zero \(line 2\); fix it and rerun"),
        ("raise SystemExit(0)", r"mine.py: f raised SystemExit: 0 \(line 2\); fix it and rerun"),
        ("import torch\n    return torch.ones(3, requires_grad=True)", "mine.py: f returned Tensor; return a list"),
    ],
)
def test_a_wrong_metric_is_a_sentence(scored: Callable[..., list[dict[str, str]]], body: str, sentence: str):
    Path("mine.py").write_text(f"def f(prompts, responses):\n    {body}\n")
    with pytest.raises(UserError, match=sentence):
        scored(score={"metrics": ["mine.py:f"]})
