"""judge: verdicts by prompt and sample, and what it refuses."""

import json
from pathlib import Path

import pytest

from prefdag.config.sections.judge import Judge
from prefdag.errors import UserError
from prefdag.stages import judge
from synthetic_results import touched, workspace


def rewards(folder: Path, rows: list[tuple[int, int, float]]) -> Path:
    folder.mkdir()
    text = "prompt_id,sample,reward\n" + "".join(f"{p},{s},{r}\n" for p, s, r in rows)
    (folder / "scores.csv").write_text(text)
    return touched(folder)


def test_judge_matches_by_prompt_and_sample(tmp_path):
    """Rows in another order: 0.5 > 0.1 wins, 0.2 = 0.2 ties, -1 < 0 loses, 3 > 2 wins: 2.5 of 4."""
    ours = rewards(tmp_path / "dpo", [(0, 0, 0.5), (0, 1, 0.2), (7, 0, -1.0), (7, 1, 3.0)])
    theirs = rewards(tmp_path / "sft", [(7, 1, 2.0), (0, 1, 0.2), (0, 0, 0.1), (7, 0, 0.0)])
    job_workspace = workspace(tmp_path / "out")
    facts = judge.run(judge.Job(judge=Judge()), job_workspace, scores=ours, against=theirs)
    assert (facts["win_rate"], facts["wins"], facts["ties"], facts["losses"], facts["n"]) == (0.625, 2, 1, 1, 4)
    assert json.loads((job_workspace.output / "summary.json").read_text()) == facts
    assert job_workspace.journal.values == {
        key: value for key, value in facts.items() if isinstance(value, int | float)
    }
    assert (job_workspace.output / "verdicts.csv").read_text().splitlines() == [
        "prompt_id,sample,judge,verdict,reward,against,shown_first,shown_second",
        "0,0,reward,1,0.5,0.1,,",
        "0,1,reward,0.5,0.2,0.2,,",
        "7,0,reward,0,-1.0,0.0,,",
        "7,1,reward,1,3.0,2.0,,",
    ]


def test_judge_taken_the_other_way_round_is_the_mirror_image(tmp_path):
    ours = rewards(tmp_path / "dpo", [(0, 0, 0.5), (1, 0, 0.2), (2, 0, -1.0), (3, 0, 3.0)])
    theirs = rewards(tmp_path / "sft", [(0, 0, 0.1), (1, 0, 0.2), (2, 0, 0.0), (3, 0, 2.0)])
    there = judge.run(judge.Job(judge=Judge()), workspace(tmp_path / "a"), scores=ours, against=theirs)
    back = judge.run(judge.Job(judge=Judge()), workspace(tmp_path / "b"), scores=theirs, against=ours)
    assert there["win_rate"] + back["win_rate"] == 1 and (there["wins"], there["losses"]) == (
        back["losses"],
        back["wins"],
    )


def test_judge_refuses_generations_for_other_prompts(tmp_path):
    ours = rewards(tmp_path / "dpo", [(0, 0, 0.5), (1, 0, 0.2)])
    theirs = rewards(tmp_path / "sft", [(0, 0, 0.5), (2, 0, 0.2)])
    with pytest.raises(UserError, match="prompt 1 sample 0"):
        judge.run(judge.Job(judge=Judge()), workspace(tmp_path / "out"), scores=ours, against=theirs)


def test_judge_refuses_a_reward_that_is_no_number(tmp_path):
    """nan is neither above nor below: it would count as a tie."""
    ours = rewards(tmp_path / "dpo", [(0, 0, float("nan")), (1, 0, 0.2)])
    with pytest.raises(AssertionError, match="count as a tie"):
        judge.run(judge.Job(judge=Judge()), workspace(tmp_path / "out"), scores=ours, against=ours)
