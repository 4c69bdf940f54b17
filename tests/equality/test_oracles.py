"""Peers' own executed code, case by case: values and gradients of every method, and the command that prints them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefdag.cli.main import main
from prefdag.testing.cases import METHODS, Cases, evaluate, read_cases
from prefdag.testing.policy_cases import POLICY_METHODS
from registry import LISTED

GOLDEN = Path(__file__).parents[1] / "golden"
PREFERENCE, POLICY = GOLDEN / "preference_losses.json", GOLDEN / "policy_optimization.json"
RAW: dict[str, Any] = json.loads(PREFERENCE.read_text())
ON_POLICY: dict[str, Any] = json.loads(POLICY.read_text())
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
    return read_cases(PREFERENCE)


@pytest.fixture(scope="module")
def policy_cases() -> Cases:
    return read_cases(POLICY)


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


@pytest.mark.parametrize("case", ON_POLICY["cases"], ids=lambda case: case["id"])
def test_a_peers_numbers_of_policy_optimization(case: dict[str, Any], policy_cases: Cases) -> None:
    """Every named number, `loss` among them, and every gradient of the loss."""
    (expected,) = (one for one in policy_cases.cases if one.id == case["id"])
    result = evaluate(expected, policy_cases.fixtures)
    for name in case["expected"].keys() - {"grad"}:
        compared(result[name], case, name)
    assert set(result["grad"]) >= set(case["expected"]["grad"])
    for side in case["expected"]["grad"]:
        compared(result["grad"][side], case, "grad", side)


def test_no_case_is_left_out(cases: Cases, policy_cases: Cases) -> None:
    """As many as the files hold, each of another id, and every method that this project claims."""
    assert len(cases.cases) == len(RAW["cases"]) == len({case.id for case in cases.cases}) == 288
    assert {case.method for case in cases.cases} - set(POLICY_METHODS) == set(METHODS)
    assert len(policy_cases.cases) == len({case.id for case in policy_cases.cases}) == 169
    assert {case.method for case in policy_cases.cases} == set(POLICY_METHODS)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("gae", {"lam": 0.5}),
        ("ppo_policy", {"clip_high": 0.9, "clip_low": 0.01}),
        ("ppo_round", {"score_at": "after_eos", "whiten": "none"}),
        ("masked_whiten", {"ddof": 0, "shift_mean": False}),
        ("grpo_loss", {"loss_type": "dapo", "beta": 0.5}),
        ("kl_controller", {"target": 3.0}),
        ("rso_target", {"beta": 1.0}),
    ],
)
def test_a_hyper_parameter_is_read(method: str, change: dict[str, Any], policy_cases: Cases) -> None:
    """Broken twin: with another value the numbers are not those of the peer."""
    case = next(one for one in policy_cases.cases if one.method == method)
    before = evaluate(case, policy_cases.fixtures)
    after = evaluate(case.model_copy(update={"hp": {**case.hp, **change}}), policy_cases.fixtures)
    assert before["loss"] != after["loss"]


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


@pytest.mark.parametrize("golden", [PREFERENCE, POLICY], ids=lambda path: path.stem)
def test_the_command_prints_them_all(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = read_cases(golden)
    assert main(["loss", "--cases", str(golden)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [evaluate(case, read.fixtures) for case in read.cases]


@pytest.mark.parametrize("golden", [PREFERENCE, POLICY], ids=lambda path: path.stem)
def test_the_answers_are_not_read(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without `expected`, `exact` and `tol` the command prints the same, beta-DPO's drawn pairs among it."""
    read, raw = read_cases(golden), json.loads(golden.read_text())
    hidden = ("expected", "exact", "tol", "source")
    bare = [{key: value for key, value in case.items() if key not in hidden} for case in raw["cases"]]
    (tmp_path / "bare.json").write_text(json.dumps({"fixtures": raw["fixtures"], "cases": bare}))
    assert main(["loss", "--cases", str(tmp_path / "bare.json")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [evaluate(case, read.fixtures) for case in read.cases]


def test_losses_that_no_peer_was_run_for() -> None:
    """Their values are golden ones alone, and their gradients are checked by differences."""
    compared = {RENAMED.get(method, method) for method in METHODS}
    alone = {"f_dpo", "log_ratio", "all_pairs", "preferred_ft", "unlikelihood", "apo_zero_unpaired"}
    assert {row.partition("-")[0] for row in LISTED} - compared == alone
