"""What is refused while a run is planned: rows of which none can be used, and too few of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import MINI
from prefdag.config.loading import merge
from prefdag.config.suite import Suite, resolve
from prefdag.data.preflight import check_first_rows
from prefdag.errors import UserError


def suite(path: Path, rows: list[dict[str, Any]], **prepare: Any) -> Suite:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "data": {"source": str(path), "world": None},
        "prepare": {"adapter": "pairs", **prepare},
        "pairs": None,
        "score": {"reward": "trained"},
    }
    resolved = resolve(merge(yaml.safe_load(MINI), changes), "x.yaml")
    assert isinstance(resolved, Suite)
    return resolved


def pairs(num: int) -> list[dict[str, Any]]:
    return [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(num)]


def test_rows_that_can_be_used_pass(tmp_path: Path):
    """One of the first twenty is enough; the world's rows are no file."""
    equal = [{"prompt": "p", "chosen": "a", "rejected": "a"}] * 19
    check_first_rows(suite(tmp_path / "x.jsonl", equal + pairs(6)))
    check_first_rows(resolve(yaml.safe_load(MINI), "x.yaml"))


def test_rows_of_another_format_are_refused_with_the_reasons(tmp_path: Path):
    sentence = r"x.jsonl: the adapter `hh` can use none of the first 10 rows \(10 rows: no assistant turn\); correct"
    with pytest.raises(UserError, match=sentence):
        check_first_rows(suite(tmp_path / "x.jsonl", pairs(10), adapter="hh"))


def test_too_few_prompts_are_refused_unless_a_share_is_stated(tmp_path: Path):
    with pytest.raises(UserError, match=r"x.jsonl: 5 different prompts, but at least 6 are needed"):
        check_first_rows(suite(tmp_path / "x.jsonl", pairs(5)))
    check_first_rows(suite(tmp_path / "x.jsonl", pairs(5), validation_fraction=0.1, test_fraction=0.4))
