"""Rankings: from samples to rows, from rows to a run, and only where a run asks for them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_run import planned

from conftest import MINI, checkout
from prefdag.config import jobs
from prefdag.config.loading import merge
from prefdag.config.suite import Suite, resolve
from prefdag.errors import UserError
from prefdag.stages.pairs import write_pairs, write_rankings

SCORED = [
    [(0.5, " c"), (0.9, " a"), (0.1, " d"), (0.7, " b")],
    [(0.5, " c"), (0.9, " a"), (0.5, " x"), (0.7, " b")],  # two tie
    [(0.5, " c"), (0.9, " a"), (0.7, " b")],  # one never ended
]


def suite(*runs: dict[str, Any], **values: Any) -> Suite:
    return resolve(merge(yaml.safe_load(MINI), {"runs": list(runs), **values}), "suite.yaml")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rankings_are_best_first_and_what_has_no_order_is_counted(tmp_path: Path) -> None:
    counts = write_rankings(tmp_path / "rankings.jsonl", ["p", "q", "r"], SCORED, 4)
    assert counts == {"rankings": 1, "rankings_short": 1, "rankings_tied": 1}
    expected = {"prompt": "p", "responses": [" a", " b", " c", " d"], "scores": [0.9, 0.7, 0.5, 0.1]}
    assert read(tmp_path / "rankings.jsonl") == [expected]


def test_pairs_are_every_two_that_differ(tmp_path: Path) -> None:
    """6 of the first prompt, 5 of the second whose tie is counted, 3 of the third; the better comes first."""
    assert write_pairs(tmp_path / "pairs.jsonl", ["p", "q", "r"], SCORED) == {"pairs": 14, "ties": 1}
    rows = read(tmp_path / "pairs.jsonl")
    assert rows[0] == {"prompt": "p", "responses": [" a", " c"], "scores": [0.9, 0.5]}
    assert all(row["scores"][0] > row["scores"][1] for row in rows)


def test_a_row_says_which_dataset_it_is_trained_on() -> None:
    """Pairs unless it says otherwise, whatever the loss; a job's own config does not name it, its inputs do."""
    runs = [{"name": name, "method": "plackett_luce"} for name in ("plain", "ranked")]
    result = suite(runs[0], runs[1] | {"dataset": "rankings", "seeds": [0, 1]})
    datasets = {run.name: run.dataset for run in result.runs}
    assert datasets == {"plain": "comparisons", "ranked-seed0": "rankings", "ranked-seed1": "rankings"}
    configs = {jobs.config_of(result, "preference", name) for name in ("plain", "ranked-seed0")}
    assert len(configs) == 1
    assert json.loads(jobs.config_of(result, "prepare", "rankings"))["dataset"] == "rankings"


HH = {"data": {"source": "x", "train": "t", "world": None}, "prepare": {"adapter": "hh"}, "pairs": None}
FILES = {"data": {"source": "x", "train": "t", "world": None}, "prepare": {"adapter": "pairs"}, "pairs": None}
RANKED = {"name": "a", "dataset": "rankings"}
MISTAKES = [
    (
        RANKED | {"method": "dpo"},
        {},
        "runs.a.dataset: dpo takes two responses, a ranking has more; leave `dataset` out",
    ),
    (
        RANKED | {"method": "dpo", "dataset": "ranks"},
        {},
        "runs.a.dataset: expected one of comparisons, rankings, got 'r",
    ),
    (
        RANKED | {"method": "nca_k"},
        HH,
        "runs.a.dataset: rows of the adapter `hh` hold two responses; sample rankings by",
    ),
    ({"name": "a", "method": "odpo"}, HH, "runs.a.method: odpo reads scores, and rows of the adapter `hh` have none;"),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_what_cannot_be_is_a_sentence_before_any_job(number: int) -> None:
    row, values, sentence = MISTAKES[number]
    with pytest.raises(UserError) as result:
        suite(row, **values)
    assert str(result.value).startswith(f"suite.yaml: {sentence}") and "\n" not in str(result.value)


def test_what_can_be_is_no_mistake() -> None:
    """Files of scored rows may have what they must: that is seen when they are read. So does the world."""
    for values in (FILES, {}):
        suite(RANKED | {"method": "nca_k"}, {"name": "b", "method": "odpo"}, **values)
    suite({"name": "a", "method": "kto"}, {"name": "b", "method": "plackett_luce"}, **HH)


def test_the_dag_makes_rankings_where_a_run_asks_for_them(tmp_path: Path) -> None:
    """Through Snakemake: a prepared dataset and a cache of its own; a loss without reference has no cache."""
    project = checkout(tmp_path / "clone")
    project.edit("configs/mini.yaml", "runs:\n", "runs:\n  - {name: kto, method: kto}\n")
    assert {job for job in planned(project) if job[0] in ("prepare", "reference")} == {
        ("prepare", "demonstrations"),
        ("prepare", "comparisons"),
        ("reference", "comparisons"),
    }
    row = "  - {name: ranked, method: plackett_luce, dataset: rankings}\n"
    project.edit("configs/mini.yaml", "runs:\n", f"runs:\n{row}")
    jobs = planned(project)
    assert {("prepare", "rankings"), ("reference", "rankings"), ("preference", "ranked")} <= jobs
    project.edit("configs/mini.yaml", row, row.replace("plackett_luce", "simpo"))
    done = project.snakemake("-n")
    assert done.returncode == 2 and "prefdag: configs/mini.yaml: runs.ranked.dataset: simpo takes two" in done.stderr
