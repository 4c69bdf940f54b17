"""`prefdag loss --cases FILE.json`: mistakes as sentences, and what peers and this project call by different names."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prefdag.cli.main import main

PAIR = {"pc": [-3], "pr": [-5], "rc": [-2], "rr": [-3], "nc": [3], "nr": [4]}
CASE = {"id": "a", "method": "dpo", "fixture": "x", "inputs": "pair", "reduction": "per_example", "hp": {"beta": 1}}
GOOD = {"fixtures": {"pair": {"x": PAIR}}, "cases": [CASE]}


def with_case(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "cases": [{**CASE, **changes}]}


MISTAKES: dict[str, tuple[Any, str]] = {
    "malformed JSON": ("{", "not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2"),
    "no file of cases": ([1], "expected keys and values, got [1]"),
    "no cases": ({"fixtures": {}}, "cases: missing; this key has no default and must be stated"),
    "no id": (
        {"fixtures": {}, "cases": [{"method": "dpo", "fixture": "x", "inputs": "pair", "reduction": "mean"}]},
        "cases.0.id: missing; this key has no default and must be stated",
    ),
    "method": (with_case(method="dpp"), "case a: method: expected <file>.py:<function> or one of "),
    "fixture": (with_case(fixture="y"), "case a: fixture: the file has no pair fixture 'y'"),
    "group": (with_case(inputs="pears"), "case a: fixture: the file has no pears fixture 'x'"),
    "no value": (
        with_case(method="simpo", hp={"gamma": 1}),
        "case a: simpo reads 'beta', which the case or its",
    ),
    "no score": (with_case(method="odpo"), "case a: odpo reads 'scores', which the case or its fixture lacks"),
    "wrong": (with_case(hp={"beta": -1}), "case a: hp.beta: expected a number above 0, got -1"),
    "unread": (with_case(hp={"gamma": 1}), "case a: hp.gamma: dpo does not read gamma; its options are beta"),
    "sizes": (
        {**GOOD, "fixtures": {"pair": {"x": {**PAIR, "pr": [-5, -6]}}}},
        "case a: malformed: stack expects each tensor to be equal size",
    ),
    "text": (
        {**GOOD, "fixtures": {"pair": {"x": {**PAIR, "pr": ["-5"]}}}},
        "case a: malformed: ",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_of_cases_is_a_sentence(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, sentence = MISTAKES[mistake]
    path = tmp_path / "cases.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert main(["loss", "--cases", str(path)]) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.startswith(f"prefdag: {path}: ") and message.count("\n") == 1


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loss", "--cases", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err == f"prefdag: {tmp_path}/none.json: No such file or directory\n"


def test_a_bad_case_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """d = -1 and -2, beta 1: -log s(1) = 0.313262, as whole numbers; two others that cannot be evaluated."""
    cases = [{**CASE, "id": "b", "method": "dpp"}, CASE, {**CASE, "id": "c", "fixture": "y"}]
    (tmp_path / "cases.json").write_text(json.dumps({**GOOD, "cases": cases}))
    assert main(["loss", "--cases", str(tmp_path / "cases.json")]) == 2
    result = capsys.readouterr()
    (line,) = map(json.loads, result.out.splitlines())
    assert (line["id"], line["loss"]) == ("a", pytest.approx([0.313262], abs=1e-6))
    assert line["grad"] == {"pc": pytest.approx([-0.268941], abs=1e-6), "pr": pytest.approx([0.268941], abs=1e-6)}
    assert "case b: method: " in result.err and result.err.endswith("(and 1 more of 3 cases)\n")


@pytest.mark.parametrize(
    ("method", "hp", "same"),
    [
        ("cdpo", {"eps": 0.25}, {"label_smoothing": 0.25}),
        ("simpo", {"beta": 2, "gamma": 1}, {"beta": 2.0, "gamma_beta_ratio": 0.5}),
        ("orpo", {"beta": 0.25}, {"lam": 0.25}),
        ("ipo_sum", {"beta": 0.5, "ipo": True}, {"beta": 0.5}),
    ],
)
def test_names_of_peers_and_ours(
    method: str, hp: dict[str, Any], same: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [{**CASE, "method": method, "hp": hp}, {**CASE, "method": method, "hp": same}]
    (tmp_path / "cases.json").write_text(json.dumps({**GOOD, "cases": cases}))
    assert main(["loss", "--cases", str(tmp_path / "cases.json")]) == 0
    one, other = capsys.readouterr().out.splitlines()
    assert one == other


def test_a_users_loss_and_the_names_of_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """By hand: log-ratios -1 and -2, so -log s(0.1 - 0.5) and, for IPO with tau 0.1, (1 - 5)^2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch.nn.functional as F\nfrom prefdag.models.logprobs import margin\n\n\n"
        "def shifted(policy, reference, *, beta: float = 0.1, eps: float):\n"
        "    return -F.logsigmoid(beta * margin((policy - reference).total) - eps)\n"
    )
    shared = {"fixture": "a", "inputs": "pair", "reduction": "per_example"}
    cases = [
        {"id": "1", "method": "mine.py:shifted", "hp": {"beta": 0.1, "eps": 0.5}, **shared},
        {"id": "2", "method": "ipo", "hp": {"beta": 0.1, "logprob": "summed"}, **shared},
    ]
    (tmp_path / "cases.json").write_text(json.dumps({"fixtures": {"pair": {"a": PAIR}}, "cases": cases}))
    assert main(["loss", "--cases", "cases.json"]) == 0
    mine, ipo = (json.loads(line)["loss"][0] for line in capsys.readouterr().out.splitlines())
    assert mine == pytest.approx(math.log1p(math.exp(0.4)), abs=1e-12) and ipo == pytest.approx(16, abs=1e-12)
