"""Two sets of answers are compared row by row: an answer that only one side has is an error, never left out."""

from pathlib import Path

import numpy as np
import pytest

from prefdag.cli import sheet
from prefdag.errors import UserError
from prefdag.evaluation.scores import Key, Scores, match_rows

ALONE = r"prompt {} sample {} is on only one side of the comparison"


def scores(*keys: Key) -> Scores:
    return Scores(Path("answers"), list(keys), {"reward": np.arange(float(len(keys)))})


def test_rows_are_matched_by_prompt_and_sample_in_any_order():
    ours = scores((1, 1), (0, 0), (1, 0), (0, 1))
    theirs = scores((0, 0), (0, 1), (1, 0), (1, 1))
    assert match_rows(ours, theirs) == [(1, 0), (3, 1), (2, 2), (0, 3)]


def test_one_answer_a_prompt_is_compared_with_every_sample():
    assert match_rows(scores((0, 0), (0, 1), (1, 0)), scores((1, 0), (0, 0))) == [(0, 1), (1, 1), (2, 0)]


@pytest.mark.parametrize(
    ("ours", "theirs", "alone"),
    [
        ([(0, 0), (1, 0)], [(0, 0)], (1, 0)),  # one answer a prompt: a prompt of ours
        ([(0, 0)], [(0, 0), (1, 0)], (1, 0)),  # and of theirs
        ([(0, 0), (0, 1), (1, 0)], [(0, 0), (0, 1)], (1, 0)),  # several: a prompt of ours
        ([(0, 0), (0, 1)], [(0, 0), (0, 1), (1, 0)], (1, 0)),  # and of theirs
        ([(0, 0), (0, 1), (0, 2)], [(0, 0), (0, 1)], (0, 2)),  # a sample of ours
        ([(0, 0), (0, 1)], [(0, 0), (0, 1), (0, 2)], (0, 2)),  # and of theirs
    ],
)
def test_an_answer_on_one_side_alone_is_an_error(ours: list[Key], theirs: list[Key], alone: Key):
    with pytest.raises(UserError, match=ALONE.format(*alone)):
        match_rows(scores(*ours), scores(*theirs))


def test_more_prompts_of_theirs_are_left_out_only_where_asked():
    """`against: chosen`: the preferred answers of all held-out prompts. A prompt of ours must have one still."""
    assert match_rows(scores((1, 0)), scores((0, 0), (1, 0)), more=True) == [(0, 1)]
    with pytest.raises(UserError, match=ALONE.format(2, 0)):
        match_rows(scores((1, 0), (2, 0)), scores((0, 0), (1, 0)), more=True)


@pytest.mark.parametrize(("name", "is_left_out"), [("chosen", True), ("chosen-style", False), ("dpo", False)])
def test_a_sheet_leaves_out_prompts_of_the_datas_answers_alone(
    name: str, is_left_out: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run whose name begins with `chosen` is a policy like any other."""
    monkeypatch.setattr(sheet, "pairs_of", lambda mine, others, keys: keys)
    for folder, prompts in (("dpo-b", (1,)), (name, (0, 1))):
        (tmp_path / folder).mkdir()
        table = "".join(f"{prompt},0,1.0\n" for prompt in prompts)
        (tmp_path / folder / "scores.csv").write_text(f"prompt_id,sample,reward\n{table}")
    if is_left_out:
        assert sheet._pairs(tmp_path / "dpo-b", tmp_path / name) == [((1, 0), (1, 0))]
    else:
        with pytest.raises(UserError, match=ALONE.format(0, 0)):
            sheet._pairs(tmp_path / "dpo-b", tmp_path / name)
