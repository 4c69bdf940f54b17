"""Peers' own executed code, case by case: values and gradients of every method, and the command that prints them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from prefdag.cli.main import main
from prefdag.testing.cases import METHODS, Cases, evaluate, read_cases
from registry import LISTED

ORACLES = ROOT.parent / "shared/reference/oracles-open.json"
MISSING = "../shared/reference/oracles-open.json is absent: peers' values are not compared"
pytestmark = pytest.mark.skipif(not ORACLES.exists(), reason=MISSING)
RAW: dict[str, Any] = json.loads(ORACLES.read_text()) if ORACLES.exists() else {"cases": []}
TOLERANCE = 1e-9
# Numbers that are null in the file: at a kink peers' derivatives differ; exp(-alpha A) is no number in float64.
NULL = Counter({"slic_cal": 4, "dpop": 5, "alphapo": 6})
# Methods that go by another name in the registry.
RENAMED = {
    "robust_dpo": "robust",
    "ipo_sum": "ipo",
    "plackett_luce_dpo": "plackett_luce",
    "multi_negative_dpo": "multi_negative",
}


@pytest.fixture(scope="module")
def cases() -> Cases:
    return read_cases(ORACLES)


def plain(values: Any) -> list[Any]:
    """Every number of nested lists, in order."""
    return [number for value in values for number in plain(value)] if isinstance(values, list) else [values]


def compared(result: Any, case: dict[str, Any], key: str, side: str | None = None) -> Counter[str]:
    """Compare every number, and count by what: the peer's, where it is finite and in float64, or the exact one.

    "null" where neither says anything; what is found there must be finite all the same.
    """

    def of(values: dict[str, Any] | None) -> list[Any] | None:
        part = (values or {}).get(key)
        part = part.get(side) if side is not None and part is not None else part
        return None if part is None else plain(part)

    peer, exact = of(case["expected"]), of(case.get("exact"))
    assert peer is not None and len(peer) == len(plain(result)), f"{key} {side}: another shape"
    counts: Counter[str] = Counter()
    for at, number in enumerate(plain(result)):
        expected, kind = peer[at], "peer"
        if exact is not None and (isinstance(expected, str) or case["tol"] > TOLERANCE):
            expected, kind = exact[at], "exact"
        tolerance = case["tol"] if exact is None else TOLERANCE
        counts["null" if expected is None else kind] += 1
        assert abs(number) < float("inf"), f"{key} {side} {at}: {number}"
        if expected is not None:
            assert abs(number - expected) <= tolerance * max(1, abs(expected)), (
                f"{key} {side} {at}: {number}, not {expected}"
            )
    return counts


@pytest.mark.parametrize("case", RAW["cases"], ids=lambda case: case["id"])
def test_a_peers_value_and_gradient(case: dict[str, Any], cases: Cases) -> None:
    (expected,) = (one for one in cases.cases if one.id == case["id"])
    result = evaluate(expected, cases.fixtures)
    compared(result["loss"], case, "loss")
    assert set(result["grad"]) >= set(case["expected"]["grad"])
    for side in case["expected"]["grad"]:
        compared(result["grad"][side], case, "grad", side)


def test_no_case_is_left_out(cases: Cases) -> None:
    """As many as the file holds, each of another id, and every method that this project claims."""
    assert len(cases.cases) == len(RAW["cases"]) == len({case.id for case in cases.cases}) == 288
    assert {case.method for case in cases.cases} == set(METHODS)


def test_what_is_not_compared_is_known(cases: Cases) -> None:
    """Numbers that are null in the file, by method: gradients at a kink, and AlphaPO of a single token of -10,000."""
    counts: Counter[str] = Counter()
    for expected, case in zip(cases.cases, RAW["cases"], strict=True):
        result = evaluate(expected, cases.fixtures)
        for counted in (
            compared(result["loss"], case, "loss"),
            *(compared(result["grad"][side], case, "grad", side) for side in case["expected"]["grad"]),
        ):
            counts[case["method"]] += counted["null"]
    assert +counts == NULL


def test_the_command_prints_them_all(cases: Cases, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loss", "--cases", str(ORACLES)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [evaluate(case, cases.fixtures) for case in cases.cases]


def test_the_answers_are_not_read(cases: Cases, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without `expected`, `exact` and `tol` the command prints the same, beta-DPO's drawn pairs among it."""
    expected = ("id", "method", "fixture", "hp", "reduction", "inputs")
    bare = [{key: case[key] for key in expected} for case in RAW["cases"]]
    (tmp_path / "bare.json").write_text(json.dumps({"fixtures": RAW["fixtures"], "cases": bare}))
    assert main(["loss", "--cases", str(tmp_path / "bare.json")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [evaluate(case, cases.fixtures) for case in cases.cases]


def test_losses_that_no_peer_was_run_for() -> None:
    """Their values are golden ones alone, and their gradients are checked by differences."""
    compared = {RENAMED.get(method, method) for method in METHODS}
    alone = {"f_dpo", "log_ratio", "all_pairs", "preferred_ft", "unlikelihood", "apo_zero_unpaired"}
    assert {row.partition("-")[0] for row in LISTED} - compared == alone
