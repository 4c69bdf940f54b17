"""`prefdag tune`: each budget is measured on a suite's own weights and comparisons, and one is chosen."""

import re
from pathlib import Path

import pytest

from benchmarks.shapes import SHAPES, write_model
from comparisons import comparisons, stored
from conftest import MINI
from prefdag.cli.main import main
from prefdag.cli.tune import Timing, best_budget


def rounds(*speeds: float, peak: float) -> list[Timing]:
    return [Timing(speed, peak) for speed in speeds]


def test_the_least_memory_among_the_fast_budgets_is_chosen() -> None:
    """Medians 90, 98, 100: 98 is within 3 % of the best and needs less; a single fast round changes nothing."""
    timings = {256: rounds(90, 89, 200, peak=100), 512: rounds(98, 98, 97, peak=200)}
    timings[4096] = rounds(100, 101, 99, peak=900)
    assert best_budget(timings) == 512
    assert best_budget({256: timings[256], 4096: timings[4096]}) == 4096


def test_it_measures_a_suites_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini.yaml").write_text(MINI)
    command = ["tune", "mini.yaml", "--budgets", "64", "128", "64", "--rounds", "1"]
    assert main(command) == 2
    assert "train: does not exist yet; run the suite first" in capsys.readouterr().err
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64}
    monkeypatch.setitem(SHAPES, "tiny", ("llama", {**sizes, "num_hidden_layers": 2, "num_attention_heads": 2}))
    write_model("tiny", tmp_path / "results/mini/sft/model")
    stored(tmp_path / "results/mini/prepare/comparisons/train", comparisons(14, 2))
    assert main(command) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[-1] in {f"preference: {{tokens_per_batch: {budget}}}" for budget in (64, 128)}
    assert sum("to" in line and "(" in line and ("64" in line or "128" in line) for line in lines) == 2
    lines = err.splitlines()
    assert lines[0] == "prefdag: 1 of 2: round 1 of 1, 64 tokens per batch"
    assert re.fullmatch(r"prefdag: 2 of 2: round 1 of 1, 128 tokens per batch, about \d+\.\d min to the end", lines[2])
    assert all(line.endswith(" MB") for line in (lines[1], lines[3])) and len(lines) == 4
