"""The numbers in the repository are those of the peers' executed code, where its own output is at hand."""

import json
from pathlib import Path

import pytest
from test_oracles import POLICY, PREFERENCE

from conftest import ROOT
from prefdag.testing.cases import evaluate, read_cases

SHARED = {
    PREFERENCE: ROOT.parent / "shared/reference/oracles-open.json",
    POLICY: ROOT.parent / "shared/reference/on-policy-open.json",
}


@pytest.mark.parametrize("path", SHARED, ids=lambda file: file.stem)
def test_the_shipped_numbers_are_those_that_peers_gave(path: Path) -> None:
    """The files under tests/golden hold the numbers of the runs, and nothing was left out."""
    if not SHARED[path].exists():
        pytest.skip(f"../shared/reference/{SHARED[path].name} is absent: the shipped numbers alone are compared")
    peers, shipped = json.loads(SHARED[path].read_text()), json.loads(path.read_text())
    assert shipped["fixtures"] == peers["fixtures"]
    for ours, theirs in zip(shipped["cases"], peers["cases"], strict=True):
        for key in ("id", "method", "fixture", "hp", "reduction", "tol"):
            assert ours[key] == theirs[key]
        expected = {key: value for key, value in theirs["expected"].items() if not key.startswith("monte_carlo")}
        assert ours["expected"] == expected
        assert ours.get("exact") == theirs.get("exact")
    results = [[evaluate(case, read.fixtures) for case in read.cases] for read in map(read_cases, SHARED.values())]
    assert results == [[evaluate(case, read.fixtures) for case in read.cases] for read in map(read_cases, SHARED)]
