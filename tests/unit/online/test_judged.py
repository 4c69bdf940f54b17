"""Online preference training labelled by a model judge: labels, failures, and the number of requests."""

from pathlib import Path

import pytest
import torch
import yaml

from conftest import MINI
from judge_server import judging, shown
from prefdag.config import jobs
from prefdag.config.online.settings import Online
from prefdag.config.sections.judge import LLM
from prefdag.config.suite import resolve
from prefdag.errors import UserError
from prefdag.online.judged import judge_comparison
from prefdag.online.rewards import labels_of
from prefdag.provenance.journal import Journal
from prefdag.runtime.stage import Workspace

JUDGE = {"model": "m", "prompt": "mine.txt", "attempts": 1, "concurrency": 1}
PAIRS = ["p", "p", "q", "q", "r", "r"], ["a", "aa", "bbb", "b", "c", "c"]


def compare_with(folder: Path, **judge: object):
    rounds = {"batch_size": 3, "max_steps": 2, "labels": "hard", "reward": "judge:m", "samples": 2}
    settings = Online.parse(rounds, "test")
    journal = Journal(folder / "journal.jsonl", root=folder, stage="online", name="x")
    workspace = Workspace("online", "x", folder / "out", folder / "resume", journal, {})
    model = LLM.parse({**JUDGE, "prompt": "summarisation-simple", **judge}, "test")
    return settings, judge_comparison(model, settings, workspace)


def test_the_judges_verdicts_are_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The longer response is preferred; equal ones tie without a question, and a response alone has no opponent."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    settings, compare = compare_with(tmp_path)
    with judging() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.address)
        scores = compare(*PAIRS)
        assert server.answered == 4
        assert compare(["p", "q"], ["a", "aa"]).tolist() == [0.5, 0.5] and server.answered == 4
    assert scores.tolist() == [0.0, 1.0, 1.0, 0.0, 0.5, 0.5]
    labels = labels_of(torch.from_numpy(scores).view(3, 2), torch.arange(3), 0, settings)
    assert labels.tolist() == [0.0, 1.0, 0.5]


def test_a_judge_that_fails_in_a_round_is_asked_only_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    _, compare = compare_with(tmp_path)
    with judging() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.address)
        server.faults = [None, 401]  # type: ignore[list-item]
        with pytest.raises(UserError) as mistake:
            compare(*PAIRS)
        assert "\n" not in str(mistake.value) and server.answered == 1
        assert compare(*PAIRS).tolist()[:4] == [0.0, 1.0, 1.0, 0.0] and server.answered == 4


def test_a_pair_without_verdict_is_a_tie_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def answer(question: str) -> str:
        return "?" if "bbb" in shown(question) else f"Preferred: {'A' if shown(question)[0] == 'aa' else 'B'}"

    monkeypatch.setenv("OPENAI_API_KEY", "k")
    _, compare = compare_with(tmp_path)
    with judging(answer=answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.address)
        assert compare(*PAIRS).tolist() == [0.0, 1.0, 0.5, 0.5, 0.5, 0.5]
    assert "1 of 2 pairs have no verdict and count as ties" in capsys.readouterr().out


def test_too_many_requests_are_refused_before_the_first(tmp_path: Path):
    with pytest.raises(UserError, match="2 rounds of 3 pairs need up to 12 requests and max_requests allows 11"):
        compare_with(tmp_path, max_requests=11)


def suite_of(**row: object):
    judge = {"judges": ["reward", JUDGE]}
    return resolve({**yaml.safe_load(MINI), "judge": judge, "runs": [{"name": "o", **row}]}, "mini.yaml")


def test_the_judge_is_part_of_the_jobs_config_and_its_prompt_of_its_code():
    suite = suite_of(method="dpo", online={"reward": "judge:m"})
    assert '"labels":"hard"' in jobs.config_of(suite, "online", "o")
    assert '"judge":{' in jobs.config_of(suite, "online", "o")
    assert jobs.user_files_of(suite, "online", "o") == (Path("mine.txt"),)
    plain = suite_of(method="dpo", online={"reward": "vader"})
    assert '"judge"' not in jobs.config_of(plain, "online", "o")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"method": "dpo", "online": {"reward": "judge:no"}}, "runs.o.reward: judge:no: no model of `judge.judges`"),
        ({"method": "dpo", "online": {"reward": "judge:m", "labels": "soft"}}, "runs.o.labels: a judge's verdicts are"),
        (
            {"method": "ppo", "reward": "judge:m"},
            "runs.o.reward: a judge compares two responses, and ppo reads",
        ),
    ],
)
def test_a_mistake_is_one_sentence(row: dict, sentence: str):
    with pytest.raises(UserError, match=sentence) as mistake:
        suite_of(**row)
    assert "\n" not in str(mistake.value)
