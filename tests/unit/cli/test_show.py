"""`prefdag show`: every key with the value that is used, and which values are defaults."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import MINI, ROOT
from prefdag.cli.main import main
from prefdag.cli.show import lines_of
from prefdag.config.suite import Suite, read_suite


@pytest.fixture
def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    path = tmp_path / "mini.yaml"
    path.write_text(MINI)
    assert main(["show", str(path)]) == 0
    return capsys.readouterr().out


def keys(section: Any) -> set[str]:
    return {name for name, field in type(section).model_fields.items() if not field.exclude}


def test_every_key_of_a_training_is_there(shown: str):
    """Also those that a job's config leaves out at their defaults: precision, adapter, group."""
    suite = read_suite([str(ROOT / "configs/quickstart.yaml")])
    assert isinstance(suite, Suite)
    values = yaml.safe_load("\n".join(lines_of(suite)))
    assert set(values) == keys(suite)
    for run, row in zip(suite.runs, values["runs"], strict=True):
        assert set(row["preference"]) == keys(run.preference) >= {"precision", "adapter", "group"}
        assert row["preference"]["learning_rate"] == run.preference.learning_rate
    assert yaml.safe_load(shown)["reward"]["half"] is None


def test_defaults_are_marked(shown: str):
    lines = [line.strip() for line in shown[shown.index("\npreference:") : shown.index("\nonline:")].splitlines()]
    assert "adam_beta1: 0.9  # default" in lines and "precision: null  # default" in lines
    stated = yaml.safe_load(MINI)["preference"]
    assert {"learning_rate", "batch_size"} <= set(stated)
    assert [line for line in lines if line.startswith("batch_size")] == [f"batch_size: {stated['batch_size']}"]


def test_a_row_that_select_chooses_shows_what_is_tried(tmp_path: Path):
    search = {"grid": {"learning_rate": [1e-3, "5e-4"]}, "kl": 5, "rows": ["dpo"]}
    path = tmp_path / "mini.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(MINI), "select": search}))
    rows = {row["name"]: row for row in yaml.safe_load("\n".join(lines_of(read_suite([str(path)]))))["runs"]}
    assert [one["learning_rate"] for one in rows["dpo"]["candidates"].values()] == [1e-3, 5e-4]
    assert "candidates" not in rows["simpo"]
