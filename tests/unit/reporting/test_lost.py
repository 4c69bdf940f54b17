"""Rows dropped and answers cut, in runs.csv, on the page's top and on the console."""

import json
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest

from artifacts import manifest_of
from manifests import bare
from prefdag.data.dropped import lost_rows, reasons, warnings
from prefdag.reporting.lost import leaked, losses_of_runs, silent_share
from prefdag.reporting.sections.overview import lost_content
from snakemake_logger_plugin_prefdag.jobs import describe_audit, describe_facts


def split(used: int, **dropped: int) -> dict:
    entries = {reason.replace("_", " "): {"count": count, "rows": []} for reason, count in dropped.items()}
    return {"used": used, "rows_in": used + sum(dropped.values()), "dropped": entries}


TRAIN = split(20, tie=5, empty_chosen=12)


def test_reasons_come_in_the_order_of_their_counts():
    assert lost_rows(TRAIN) == (17, 37)
    assert reasons(TRAIN) == "12 empty chosen, 5 tie"


def test_only_many_lost_rows_are_warned_of():
    """17 of 37 are; 1 of 10 is not, nor is an empty split."""
    assert warnings({"train": TRAIN, "test": split(9, tie=1), "validation": split(0)}) == [
        "train: 17 of 37 rows (46%) are dropped: 12 empty chosen, 5 tie"
    ]


@pytest.fixture
def comparisons(tmp_path: Path) -> Path:
    folder = tmp_path / "prepare/comparisons"
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text(json.dumps({"splits": {"train": TRAIN, "test": split(9, tie=1)}}))
    return manifest_of(folder).path


def test_the_columns_of_runs_csv(comparisons: Path, tmp_path: Path):
    """A run that was trained on these comparisons has their numbers; one on rankings, base and SFT have none."""
    preferences = []
    for name, digest in (("dpo", manifest_of(comparisons.parent).sha256), ("on-rankings", "another")):
        path = tmp_path / f"preference/{name}/manifest.json"
        path.parent.mkdir(parents=True)
        path.write_text(bare("preference", inputs={"comparisons": digest}))
        preferences.append(path)
    policies = ["sft", "dpo", "on-rankings"]
    summaries = {name: {"ended": {"mean": 0.25}} for name in policies[:2]} | {"on-rankings": {}}
    table = losses_of_runs(policies, summaries, preferences, comparisons)
    assert list(table.columns) == ["rows_used", "rows_dropped", "ended"]
    assert table.loc["dpo"].tolist() == [20, 17, 0.25]
    assert table["rows_used"].isna().tolist() == [True, False, True]
    assert table["ended"].isna().tolist() == [False, False, True]


def test_an_answer_of_the_end_alone_is_silent():
    """One of four ended at once; one token that was cut, or two tokens, are text."""
    answers = pd.DataFrame({"length": [1, 1, 2, 9], "ended": [1, 0, 1, 1]})
    assert silent_share(answers) == 0.25 and silent_share(answers[["length"]]) == 0


def test_the_top_of_the_page_names_cut_and_silent_answers(comparisons: Path):
    tables = {"sft": pd.DataFrame({"length": [9] * 20, "ended": 1}), "rloo": pd.DataFrame({"length": [1, 9, 9, 9]})}
    tables["rloo"]["ended"] = [1, 1, 1, 0]
    runs = pd.DataFrame({"run": list(tables), "display": ["SFT", "RLOO"], "ended": [1, 0.75]})
    content = lost_content(Mock(inputs=Mock(comparisons=comparisons), runs=runs, tables=tables))
    assert (content["cut_answers"], content["silent_answers"]) == ("RLOO 25%", "RLOO 25%")


def allowing(folder: Path, leakage: str, shared: dict[str, int]) -> Path:
    folder.mkdir()
    splits = {"test": {**split(9), "prompts": {"repeated_rows": 4, "its_first_row": 7}}}
    (folder / "audit.json").write_text(json.dumps({"splits": splits, "shared_prompts": shared}))
    (folder / "manifest.json").write_text(bare("prepare", config={"prepare": {"leakage": leakage}}))
    return folder / "manifest.json"


def test_a_suite_that_allows_leakage_says_how_many_test_prompts_it_trained_on(tmp_path: Path):
    shared = {"test and train split": 2, "validation and train split": 1, "test and SFT's training": 3}
    assert leaked(allowing(tmp_path / "some", "allow", shared)) == [
        "This suite states leakage: allow. Of 5 prompts of the test split, 2 are in the train split and 3 are in SFT's "
        "training too."
    ]
    assert "no prompt of the test split" in leaked(allowing(tmp_path / "none", "allow", {}))[0]
    assert leaked(allowing(tmp_path / "error", "error", {})) == []


def test_the_console_names_what_is_dropped_and_cut(comparisons: Path):
    assert describe_audit(comparisons.parent) == "; dropped: 12 empty chosen, 6 tie"
    assert describe_facts("generate", {"generations": 40, "ended": 0.5}) == "40 answers, 50% cut at the token limit"
    assert describe_facts("generate", {"generations": 40, "ended": 1.0}) == "40 answers"
