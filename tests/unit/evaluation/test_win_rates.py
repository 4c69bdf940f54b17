"""Length, order and agreement by arithmetic that a reader can redo, and on published verdicts."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT
from prefdag.cli.main import main
from prefdag.evaluation import win_rates
from prefdag.evaluation.win_rates import JudgedPairs, agreement, cohen, length_controlled, logistic, matched_length
from prefdag.seeds import generator

SHARED = ROOT / "../shared/data"
ABOUT = {"seed": "test", "bootstrap": 200}


def published(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"../shared/data/{name} is not there: published verdicts are no part of the project")
    return path


def printed(capsys: pytest.CaptureFixture[str], *files: Path) -> dict:
    assert main(["winrate", *map(str, files), "--bootstrap", "200"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_fit_of_two_lengths_is_solved_by_hand() -> None:
    """x = -1: 1 win of 4, logit -log 3; x = 1: 3 of 4, log 3. So theta = 0 and phi = log 3; weights act as copies."""
    x, y = np.array([-1, -1, 1, 1]), np.array([1, 0, 1, 0])
    theta, phi = logistic(x, y, np.array([[1.0, 3.0, 3.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    assert theta == pytest.approx([0, 0], abs=1e-9)
    assert phi == pytest.approx([np.log(3), 0], abs=1e-3)


def test_length_control_finds_the_rate_at_equal_lengths() -> None:
    """Sampled from the model, theta = logit 0.4, phi = 2, ours longer nearly always: raw 0.65, controlled 0.4."""
    rng = generator(0, "lengths")
    gap = rng.normal(80, 60, 20000)
    chance = 1 / (1 + np.exp(-(np.log(0.4 / 0.6) + 2 * np.tanh(gap / gap.std(ddof=1)))))
    verdicts = (rng.random(20000) < chance).astype(float)
    result = length_controlled(verdicts, 200 + gap, np.full(20000, 200), np.arange(20000), **ABOUT)
    assert verdicts.mean() > 0.64
    assert result is not None and result["win_rate"] == pytest.approx(0.4, abs=0.02)
    assert result["low"] < 0.4 < result["high"] and result["phi"] == pytest.approx(2, abs=0.1)


def test_memory_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [1, 1, 0, 0, 1], [9, 8, 1, 2, 3], [1, 1, 9, 9, 4], np.arange(5)
    whole = length_controlled(*arguments, **ABOUT)
    monkeypatch.setattr(win_rates, "WEIGHTS_AT_ONCE", 5 * 7)
    assert length_controlled(*arguments, **ABOUT) == whole


def test_length_control_needs_lengths_that_differ() -> None:
    assert length_controlled([1, 0, 1], [5, 6, 7], [4, 5, 6], [0, 1, 2], **ABOUT) is None
    longer_wins = length_controlled([1, 1, 0, 0], [9, 8, 1, 2], [1, 1, 9, 9], range(4), **ABOUT)
    assert longer_wins is not None and 0 <= longer_wins["low"] <= longer_wins["high"] <= 1  # separable, still finite


def test_matched_length_leaves_out_pairs_of_other_lengths() -> None:
    """100 and 91 differ by 9 % of the longer, 100 and 89 by 11 %: of 1, 0, 0 the first two stay, win rate a half."""
    result = matched_length([1, 0, 0], np.array([100, 50, 100]), np.array([91, 50, 89]), np.arange(3), **ABOUT)
    assert (result["win_rate"], result["n"]) == (0.5, 2)
    assert matched_length([1], np.array([9]), np.array([1]), np.arange(1), **ABOUT) == {"win_rate": None, "n": 0}
    for number in (4, 5):  # fewer than five prompts have no interval
        result = matched_length([1] * number, np.full(number, 9), np.full(number, 9), np.arange(number), **ABOUT)
        assert ("low" in result) == (number == 5) and result.get("low", 0) < 1


def test_order_bias_of_pairs_shown_both_ways() -> None:
    """Eight pairs go to the answer shown first: p = 2 / 2^8 = 0.0078, biased. Seven: 2 / 2^7 = 0.0156, not yet."""
    result = win_rates.order_bias_of_both([1] * 8 + [1], [0] * 8 + [1])
    assert (result["p_value"], result["judge"]) == (pytest.approx(2 / 2**8), "biased")
    assert (result["ours_first"]["win_rate"], result["ours_second"]["win_rate"]) == (1.0, pytest.approx(1 / 9))
    assert (result["prefers_first"], result["first_in_both"], result["second_in_both"]) == (
        pytest.approx(17 / 18),
        8,
        0,
    )
    seven = win_rates.order_bias_of_both([1] * 7, [0] * 7)
    assert (seven["p_value"], seven["judge"]) == (pytest.approx(2 / 2**7), "no bias shown")
    fair = win_rates.order_bias_of_both([1, 0, 1, 0], [1, 0, 0, 1])
    assert (fair["p_value"], fair["judge"]) == (1.0, "no bias shown")
    assert win_rates.order_bias_of_both([1, 0.5], [1, 0.5])["p_value"] == 1.0  # no verdict moves


def test_order_bias_of_pairs_shown_once() -> None:
    """Ours wins 5 of 5 shown first and 0 of 5 shown second: of 252 tables two are as extreme, p = 2 / 252 = 0.0079."""
    verdicts, first = [1] * 5 + [0] * 5, [True] * 5 + [False] * 5
    result = win_rates.order_bias(verdicts, first)
    assert (result["p_value"], result["judge"], result["prefers_first"]) == (pytest.approx(2 / 252), "biased", 1.0)
    assert win_rates.order_bias([1, 0, 1, 0], [True, True, False, False])["judge"] == "no bias shown"


def judged(name: str, verdicts: list[float]) -> JudgedPairs:
    keys = [(str(number),) for number in range(len(verdicts))]
    return JudgedPairs(name, keys, np.array(verdicts, dtype=float), np.array([key for (key,) in keys]))


def test_agreement_leaves_ties_out_and_kappa_does_not() -> None:
    """Of 6 pairs one has no verdict, two are tied by somebody, and two of the other three are agreed upon: 2/3.

    Confusion of loss, tie, win: [[1, 0, 1], [0, 1, 0], [0, 1, 1]]: p_o = 3/5, p_e = (2 + 2 + 4) / 25, kappa = 7 / 17.
    """
    one = judged("gpt", [0, 1, 0, 0.5, 1, 1])
    other = judged("people", [0, 1, 1, 0.5, 0.5, float("nan")])
    result = agreement(one, other, **ABOUT)
    assert (result["judges"], result["n"], result["ties"]) == (["gpt", "people"], 5, 2)
    assert result["agreement"] == pytest.approx(2 / 3)
    assert result["kappa"] == pytest.approx((3 / 5 - 8 / 25) / (1 - 8 / 25)) == pytest.approx(7 / 17)
    assert result["kappa_low"] < 7 / 17 < result["kappa_high"]


def test_kappa_is_none_where_chance_explains_all() -> None:
    assert cohen(np.diag([0, 0, 4])) is None and cohen(np.zeros((3, 3))) is None
    assert cohen(np.diag([2, 0, 4])) == 1
    assert agreement(judged("a", [1, 0]), judged("b", [float("nan")] * 2), **ABOUT)["n"] == 0


LEADERBOARD = {  # model: win rate, standard error, annotations with a verdict, as published
    "alpaca-7b": ("26.459627329192543", "1.535711469748", 805),
    "phi-2-sft": ("68.53233830845771", "1.6387859753495355", 804),
    "tulu-2-dpo-7b": ("84.22360248447205", "1.2855613371106336", 805),
    "zephyr-7b-beta": ("90.5977584059776", "1.0287080531312012", 803),
}


@pytest.mark.parametrize("model", LEADERBOARD)
def test_alpaca_evals_leaderboard(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The published rate and error, from the published annotations; float64's last digit aside."""
    board = published("alpaca-eval/alpaca_eval_gpt4_leaderboard.csv")
    with board.open(newline="", encoding="utf-8") as stream:
        row = next(row for row in csv.DictReader(stream) if row[""] == model)
    assert (row["win_rate"], row["standard_error"], int(row["n_total"])) == LEADERBOARD[model]
    result = printed(capsys, SHARED / f"alpaca-eval/{model}/annotations.json")
    assert (
        result["unit"] == "percent"
        and result["n"] == int(row["n_total"])
        and result["without_verdict"] == 805 - result["n"]
    )
    assert result["win_rate"] == pytest.approx(float(row["win_rate"]), rel=1e-14)
    assert result["standard_error"] == pytest.approx(float(row["standard_error"]), rel=1e-12)
    counts = [int(row[name]) for name in ("n_wins", "n_draws", "n_wins_base")]
    assert [result[name] for name in ("wins", "ties", "losses")] == counts


@pytest.mark.parametrize("model", ["alpaca-7b", "phi-2-sft", "zephyr-7b-beta"])
def test_alpaca_evals_length_control(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Within 3 points of the published rate, which has a term for difficulty too; phi-2-sft loses 26 to length."""
    board = published("alpaca-eval/alpaca_eval_gpt4_leaderboard.csv")
    with board.open(newline="", encoding="utf-8") as stream:
        row = next(row for row in csv.DictReader(stream) if row[""] == model)
    result = printed(capsys, SHARED / f"alpaca-eval/{model}/annotations.json")["length_controlled"]
    assert result["win_rate"] == pytest.approx(float(row["length_controlled_winrate"]), abs=3)
    assert result["low"] < float(row["length_controlled_winrate"]) < result["high"]


def test_a_judge_of_summaries_is_called_biased(capsys: pytest.CaptureFixture[str]) -> None:
    """71.6 % shown first, 55.8 % shown second, and 945 of 1,945 posts not judged."""
    result = printed(capsys, published("tldr/oai1b.csv_judged.csv"))
    order = result["order"]
    assert (round(order["ours_first"]["win_rate"], 1), order["ours_first"]["n"]) == (71.6, 518)
    assert (round(order["ours_second"]["win_rate"], 1), order["ours_second"]["n"]) == (55.8, 482)
    assert order["judge"] == "biased" and order["p_value"] < 1e-6
    assert (result["win_rate"], result["n"], result["without_verdict"]) == (64.0, 1000, 945)


def test_several_judges_and_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Our own verdicts.csv with two judges, and people's labels in a file of their own: three pairs of judges."""
    rows = ["prompt_id,sample,judge,verdict,shown_first,shown_second"]
    rows += ["0,0,gpt,1,1,1", "1,0,gpt,0.5,1,0", "2,0,gpt,,1,", "0,0,reward,1,,", "1,0,reward,0,,", "2,0,reward,1,,"]
    (tmp_path / "verdicts.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "people.csv").write_text("prompt_id,sample,verdict\n0,0,1\n1,0,0\n2,0,0\n")
    result = printed(capsys, tmp_path / "verdicts.csv", tmp_path / "people.csv")
    gpt, reward, people = result["judges"]
    assert (gpt["judge"], gpt["win_rate"], gpt["n"], gpt["without_verdict"]) == ("gpt", 75.0, 2, 1)
    assert (gpt["order"]["ours_first"]["win_rate"], gpt["order"]["ours_second"]["win_rate"]) == (100.0, 50.0)
    assert (reward["win_rate"], people["judge"], people["win_rate"]) == (
        pytest.approx(200 / 3),
        "people",
        pytest.approx(100 / 3),
    )
    assert [entry["judges"] for entry in result["agreement"]] == [
        ["gpt", "reward"],
        ["gpt", "people"],
        ["reward", "people"],
    ]
    assert result["agreement"][2]["agreement"] == pytest.approx(200 / 3)


PAIRS = [("gpt", "a", 1), ("gpt", "a", 1), ("gpt", "b", 2), ("gpt", "b", 2), ("people", "b", 1), ("people", "b", 2)]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_several_models_and_annotators_are_several_rates(
    line_end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Model a loses both pairs and b wins both by gpt; by people b wins one. Only b has two judges to agree."""
    rows = [
        {
            "instruction": f"q{n % 2}",
            "annotator": judge,
            "generator_1": "base",
            "generator_2": model,
            "preference": value,
        }
        for n, (judge, model, value) in enumerate(PAIRS)
    ]
    file = tmp_path / "annotations.jsonl"
    file.write_bytes("".join(json.dumps(row) + line_end for row in [*rows]).encode() + line_end.encode())
    result = printed(capsys, file)
    rates = [(one["judge"], one["model"], one["against"], one["win_rate"], one["n"]) for one in result["judges"]]
    assert rates == [("gpt", "a", "base", 0.0, 2), ("gpt", "b", "base", 100.0, 2), ("people", "b", "base", 50.0, 2)]
    assert [(one["judges"], one["n"]) for one in result["agreement"]] == [(["gpt", "people"], 2)]


def test_annotators_of_a_sheet_with_semicolons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "people.csv"
    file.write_text("prompt_id;sample;annotator;verdict\n0;0;x;1\n1;0;x;1\n0;0;y;0\n1;0;y;1\n")
    assert [(one["judge"], one["win_rate"]) for one in printed(capsys, file)["judges"]] == [("x", 100.0), ("y", 50.0)]


MISTAKES = {
    "none.json": (None, "no such file"),
    "broken.json": ("[{", "not valid JSON"),
    "object.json": ("{}", "expected rows"),
    "empty.json": ("[]", "has no rows"),
    "other.csv": ("a,b\n1,2\n", "no column holds a verdict"),
    "text.txt": ("1", "ends in .json, .jsonl or .csv"),
    "word.json": ('[{"preference": 1}, {"preference": "good"}]', "row 2: preference: expected 1 to 2"),
    "large.json": ('[{"preference": 1}, {"preference": 3}]', "row 2: preference: expected 1 to 2"),
    "truth.json": ('[{"preference": 1}, {"preference": true}]', "row 2: preference: expected 1 to 2"),
    "lacking.json": ('[{"preference": 1}, {}]', "row 2: preference"),
    "one.json": ('[{"preference": 1}, {"preference": null}]', "fewer than 2 prompts"),
    "who.csv": ("preferred,shuffled_index\nours,0\ntheirs,1\n", "row 2: preferred: expected ours, reference"),
    "where.csv": ("preferred,shuffled_index\nours,0\nours,2\n", "row 2: shuffled_index: expected 0"),
    "cut.csv": ("prompt_id,verdict\n0,1\n1\n", "row 2 has fewer fields"),
    "quote.csv": ('prompt_id,verdict\n0,"1\n', "not a valid csv"),
    "columns.json": ('{"preference": {"0": 1, "1": 2}}', "has columns (preference) where rows are expected"),
    "zero.json": ('[{"preference": 0}, {"preference": 1}]', "every preference is 0 or 1"),
    "line.jsonl": ('{"preference": 1}\n\n{"preference"\n', "line 3: not valid JSON"),
    "twice.csv": ("prompt_id,sample,verdict\n0,0,1\n0,0,0\n", "several rows of prompt 0 sample 0"),
    "unnamed.json": ('[{"preference": 1, "generator_2": "m"}, {"preference": 2}]', "some rows have no generator_2"),
    "verdict.csv": ("prompt_id,verdict\n0,1\n1,7\n", "row 2: verdict: expected a number from 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_bad_file_is_a_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, output = MISTAKES[name]
    if text is not None:
        (tmp_path / name).write_text(text)
    assert main(["winrate", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert output in err and name in err and len(err.splitlines()) == 1 and not out


def test_a_file_of_another_encoding_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.csv").write_bytes("prompt_id,verdict\ncafé,1\n".encode("cp1252"))
    assert main(["winrate", str(tmp_path / "latin.csv")]) == 2
    assert "UTF-8" in capsys.readouterr().err
