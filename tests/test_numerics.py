"""Losses as numbers: finite wherever log-probs can lie, to the last bit of their precision, with the gradient they say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefdag.__main__ import main
from prefdag.logprobs import LogProbs
from registry import ROWS, Given, drawn_for, named

every_row = pytest.mark.parametrize("row", ROWS, ids=named)


def filled(of: LogProbs, value: float, responses: int | None = None) -> LogProbs:
    """Every token of the k-th responses, or of all, at one value."""
    size = of.shape[1]
    chosen = torch.ones_like(of.owner, dtype=torch.bool) if responses is None else of.owner % size == responses
    return replace(of, tokens=torch.where(chosen, torch.full_like(of.tokens, value), of.tokens).detach())


def extremes(row: dict[str, Any], dtype: torch.dtype) -> dict[str, Given]:
    """Where a training can come to, and where peers' code overflows."""
    given = drawn_for(row, dtype=dtype)
    policy, reference = given.policy, given.inputs["reference"]
    last = policy.shape[1] - 1
    return {
        "as drawn": given,
        "single tokens": drawn_for(row, dtype=dtype, longest=1),
        "one comparison": given.of([2]),
        "equal to the reference": given.with_(reference=replace(policy, tokens=policy.tokens.detach())),
        "impossible": given.with_(filled(policy, -1e4)),
        "impossible to the reference": given.with_(reference=filled(reference, -1e4)),
        "impossible first": given.with_(filled(policy, -1e4, 0)),
        "impossible last": given.with_(filled(policy, -1e4, last)),
        "one impossible token": drawn_for(row, dtype=dtype, longest=1)
        .of([0])
        .with_(filled(drawn_for(row, dtype=dtype, longest=1).of([0]).policy, -1e4)),
        "certain": given.with_(filled(policy, 0.0)),
        "certain first": given.with_(filled(policy, 0.0, 0)),
        "certain last": given.with_(filled(policy, 0.0, last)),
        "ties": given.with_(
            filled(policy, -1.0), reference=filled(reference, -1.0), scores=torch.ones_like(given.inputs["scores"])
        ),
        "drawn on the border": given.with_(noise=torch.tensor([0, 1, 0, 1, 0, 1]).to(dtype)),
    }


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients_are_finite(row: dict[str, Any], dtype: torch.dtype) -> None:
    for where, given in extremes(row, dtype).items():
        tokens = given.policy.tokens.detach().requires_grad_()
        loss = given.with_(replace(given.policy, tokens=tokens)).loss(**row)
        (slope,) = torch.autograd.grad(loss.sum(), [tokens])
        assert loss.dtype == dtype and loss.isfinite().all(), f"{where}: {loss}"
        assert slope.isfinite().all(), f"{where}: gradient {slope}"


@every_row
def test_no_option_passes_through_float32(row: dict[str, Any]) -> None:
    """torch turns a number of Python into a float32 where it meets whole numbers or truth values alone; with another
    default dtype it would become a float64, so that equal bits show that it never does.
    """
    given = drawn_for(row)
    found = given.loss(**row)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(given.loss(**row), found)
    finally:
        torch.set_default_dtype(torch.float32)


# What these hold without gradient moves with the policy: BCO's running mean, beta-DPO's beta, WPO's weight. Peers' cases
# check their gradients.
HELD = {"bco", "beta_dpo", "wpo"}


@every_row
def test_gradients_are_those_of_the_values(row: dict[str, Any]) -> None:
    given = drawn_for(row)

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        return given.with_(replace(given.policy, tokens=tokens)).loss(**row)

    right = torch.autograd.gradcheck(loss, [given.policy.tokens], eps=1e-6, atol=1e-7, raise_exception=False)
    assert right == (row["method"] not in HELD)


def test_the_gradient_of_a_divergence() -> None:
    """TDPO2 has none through the chosen response's, TDPO1 has: -s(-z) beta times +1 and -1, or 0 and -1/2."""
    for row, expected in (({"method": "tdpo1"}, (-1, 1)), ({"method": "tdpo2"}, (0, 0.5))):
        given = drawn_for(row).of([3])
        divergence = given.inputs["divergence"].requires_grad_()
        loss = given.loss(**row, beta=0.13)
        (slope,) = torch.autograd.grad(loss, [divergence])
        weight = 0.13 * (1 - torch.exp(-loss))
        for response, sign in enumerate(expected):
            assert torch.allclose(slope[given.policy.owner == response], weight * sign, rtol=1e-10)


PAIR = {"pc": [-3], "pr": [-5], "rc": [-2], "rr": [-3], "nc": [3], "nr": [4]}
CASE = {"id": "a", "method": "dpo", "fixture": "x", "inputs": "pair", "reduction": "per_example", "hp": {"beta": 1}}
GOOD = {"fixtures": {"pair": {"x": PAIR}}, "cases": [CASE]}


def with_case(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "cases": [{**CASE, **changes}]}


MISTAKES: dict[str, tuple[Any, str]] = {
    "malformed JSON": ("{", "not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2"),
    "no file of cases": ([1], "input should be a valid dictionary"),
    "no cases": ({"fixtures": {}}, "cases: missing; this key has no default and must be stated"),
    "no id": ({"fixtures": {}, "cases": [{}]}, "cases.0.id: missing; this key has no default and must be stated"),
    "method": (with_case(method="dpp"), "case a: method: expected one of alphapo, aot,"),
    "fixture": (with_case(fixture="y"), "case a: fixture: the file has no pair fixture 'y'"),
    "group": (with_case(inputs="pears"), "case a: fixture: the file has no pears fixture 'x'"),
    "no value": (
        with_case(method="simpo", hp={"gamma": 1}),
        "case a: simpo reads 'beta', which the case or its fixture",
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
    told = capsys.readouterr().err
    assert sentence in told and told.startswith(f"prefdag: {path}: ") and told.count("\n") == 1


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loss", "--cases", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err == f"prefdag: {tmp_path}/none.json: No such file or directory\n"


def test_a_bad_case_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """d = -1 and -2, beta 1: -log s(1) = 0.313262, as whole numbers; two others that cannot be evaluated."""
    cases = [{**CASE, "id": "b", "method": "dpp"}, CASE, {**CASE, "id": "c", "fixture": "y"}]
    (tmp_path / "cases.json").write_text(json.dumps({**GOOD, "cases": cases}))
    assert main(["loss", "--cases", str(tmp_path / "cases.json")]) == 2
    found = capsys.readouterr()
    (line,) = map(json.loads, found.out.splitlines())
    assert (line["id"], line["loss"]) == ("a", pytest.approx([0.313262], abs=1e-6))
    assert line["grad"] == {"pc": pytest.approx([-0.268941], abs=1e-6), "pr": pytest.approx([0.268941], abs=1e-6)}
    assert "case b: method: " in found.err and found.err.endswith("(and 1 more of 3 cases)\n")


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
