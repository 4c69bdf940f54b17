"""Sheets for people: pairs without names, and their verdicts as those of one more judge."""

import csv
import json
from pathlib import Path

import pytest
from test_judge_llm import results, summary

from prefdag.cli.main import main
from prefdag.config.sections.judge import Judge, with_relative_paths
from prefdag.errors import UserError
from prefdag.evaluation.judge.run import Pair
from prefdag.evaluation.judge.sheets import read_sheet, write_sheet
from prefdag.evaluation.spreadsheets import cell_of, text_of

PAIRS = [Pair("Post 0", "ours", "theirs"), Pair("Post 1", "mine\r\nof two lines", "yours")]


def filled(path: Path, *preferred: str) -> Path:
    rows = list(csv.reader(path.open(newline="")))
    for row, output in zip(rows[1:], preferred, strict=True):
        row[3] = output
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_a_verdict_is_found_by_its_texts_on_either_side(tmp_path: Path) -> None:
    """The second pair is swapped: `a` is theirs. An answer that was not shown has no verdict."""
    write_sheet(tmp_path / "s.csv", PAIRS, [False, True])
    assert "dpo" not in (tmp_path / "s.csv").read_text()
    filled(tmp_path / "s.csv", "a", "a")
    new = Pair("Post 0", "ours, changed", "theirs")
    assert str(read_sheet(tmp_path / "s.csv", [*PAIRS, new])) == "[1.0, 0.0, nan]"
    assert read_sheet(tmp_path / "s.csv", [Pair("Post 0", "theirs", "ours")]) == [0.0]
    filled(tmp_path / "s.csv", " Tie", "")
    assert str(read_sheet(tmp_path / "s.csv", PAIRS)) == "[0.5, nan]"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "prompt,response_a,response_b,preferred\np,x,y,c\n",
            "row 1: preferred: expected a, b, tie or nothing, got 'c'",
        ),
        ("prompt,response_a,response_b,preferred\np,x,y,a\np,y,x,a\n", "row 2 contradicts an earlier row"),
        ("prompt,response_a,preferred\np,x,a\n", "row 1 has no response_b; a sheet has the columns"),
    ],
)
def test_a_sheet_that_cannot_be_meant_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_sheet(tmp_path / "s.csv", PAIRS)


def test_drawn_filled_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """People prefer the longer answer, as the reward does: dpo's at prompts 0 to 3, SFT's at 4 and 5."""
    monkeypatch.chdir(tmp_path)
    folder = results(tmp_path / "results/suite")
    assert main(["sheet", "dpo", "sft", "people.csv", "--pairs", "5"]) == 0
    assert capsys.readouterr().out == "people.csv: 5 of 6 pairs\n"
    rows = list(csv.DictReader((tmp_path / "people.csv").open(newline="")))
    assert len({row["prompt"] for row in rows}) == 5
    assert {row["response_a"].startswith("A middling") for row in rows} == {True, False}, "sides are shuffled"
    wanted = ["a" if ("good" in row["response_a"] or "Short" in row["response_b"]) else "b" for row in rows]
    filled(tmp_path / "people.csv", *wanted)
    inputs = {
        "scores": "score/dpo",
        "against": "score/sft",
        "generations": "generate/dpo",
        "against_generations": "generate/sft",
    }
    arguments = [text for key, at in inputs.items() for text in (f"--{key}", str(folder / at / "manifest.json"))]
    section = {"judges": ["reward", {"people": "people.csv"}], "bootstrap": 50}
    command = [
        "judge",
        "--config",
        json.dumps({"judge": section}),
        *arguments,
        "--output",
        str(folder / "judge/dpo/manifest.json"),
    ]
    assert main(command) == 0
    result = summary(folder)
    assert (result["judges"]["people"]["n"], result["judges"]["people"]["without_verdict"]) == (5, 1)
    assert result["judges"]["people"]["wins"] == sum("good" in row["response_a"] + row["response_b"] for row in rows)
    assert result["agreement"][0]["judges"] == ["reward", "people"] and result["agreement"][0]["agreement"] == 1.0
    before = json.loads((folder / "judge/dpo/manifest.json").read_text())["code"]
    filled(tmp_path / "people.csv", *["tie"] * 5)
    assert main(command) == 0
    assert json.loads((folder / "judge/dpo/manifest.json").read_text())["code"] != before, "the sheet is part of it"
    assert main(["sheet", "dpo", "sft", "people.csv"]) == 2
    assert "exists and may hold verdicts" in capsys.readouterr().err


def test_a_sheet_is_found_from_the_suites_file() -> None:
    values = with_relative_paths({"judges": ["reward", {"people": "sheets/p.csv", "name": "Ann"}]}, "configs/x.yaml")
    result = Judge.model_validate(values)
    assert [one.people for one in result.sheets] == ["configs/sheets/p.csv"] and result.reads_answers
    assert result.user_files() == (Path("configs/sheets/p.csv"),)
    with pytest.raises(UserError, match="expected <file>.csv"):
        Judge.parse({"judges": [{"people": "p.xlsx"}]}, "x", "judge")


FORMULAS = ["=HYPERLINK(1)", "+1", "-item", "@user", "\tx", "'=1", "''x", "'", "plain", "", "-3", "\uff1d1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_cell_is_no_formula_and_reads_back(text: str):
    assert text_of(cell_of(text)) == text
    assert not cell_of(text).startswith(tuple("=+-@\t\r\uff1d"))


def test_verdicts_about_texts_that_look_like_formulas(tmp_path: Path):
    pairs = [Pair(text, f"{text} ours", f"={text} theirs") for text in FORMULAS]
    write_sheet(tmp_path / "sheet.csv", pairs, [False] * len(pairs))
    with (tmp_path / "sheet.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    for row in rows[1:]:
        row[-1] = "a"
    with (tmp_path / "sheet.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    assert read_sheet(tmp_path / "sheet.csv", pairs) == [1.0] * len(pairs)
