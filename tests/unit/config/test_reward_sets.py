"""`evaluate_reward`, `reward.variants` and `report.gold`: what a suite may state, and the jobs that follow from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import MINI
from prefdag.config import jobs
from prefdag.config.loading import merge
from prefdag.config.suite import Suite, resolve
from prefdag.errors import UserError
from prefdag.planning.graph import inputs_of, jobs_of
from prefdag.planning.suite_paths import check_paths

BENCH = {"source": "hub:allenai/reward-bench", "file": "data/*.parquet", "subset": "subset"}


def suite(sets: Any) -> Suite:
    resolved = resolve(merge(yaml.safe_load(MINI), {"evaluate_reward": sets} if sets else {}), "configs/x.yaml")
    assert isinstance(resolved, Suite)
    return resolved


def test_a_set_with_rows_is_fetched_prepared_and_measured():
    both, without = suite({"bench": BENCH, "test": {}}), suite(None)
    new = ["fetch/evaluated-bench", "prepare/evaluated-bench", "evaluate_reward/bench", "evaluate_reward/test"]
    assert sorted(set(jobs_of(both)) - set(jobs_of(without))) == sorted(new)
    assert inputs_of(both, "evaluate_reward", "bench")["rows"] == ["fetch/evaluated-bench"]
    assert inputs_of(both, "evaluate_reward", "test") | {"evaluated": []} == inputs_of(both, "evaluate_reward", "test")
    config = json.loads(jobs.config_of(both, "fetch", "evaluated-bench"))
    fetched, lock = config["evaluated"], config["lock"]
    assert lock == both.lock == jobs.lock_of(both, "evaluated-bench")
    assert (fetched["source"], fetched["train"]) == (BENCH["source"], BENCH["file"])
    prepared = json.loads(jobs.config_of(both, "prepare", "evaluated-bench"))
    assert prepared["dataset"] == "evaluated" and prepared["prepare"]["adapter"] == "pairs"


def test_other_jobs_are_as_without_the_section():
    both, without = suite({"bench": BENCH}), suite(None)
    for job in set(jobs_of(without)) - {"report"}:
        stage, _, name = job.partition("/")
        assert jobs.config_of(both, stage, name or None) == jobs.config_of(without, stage, name or None)
    assert "evaluate_reward" not in without.model_dump()


def test_sections_reach_the_job_and_no_job_without_them():
    sections = {"chat": ["easy", "hard"], "reasoning": {"math": 984, "code": 164}}
    one = suite({"bench": {**BENCH, "sections": sections}, "test": {"subset": "s"}})
    evaluation = json.loads(jobs.config_of(one, "evaluate_reward", "bench"))["evaluation"]
    assert evaluation["sections"] == sections
    assert "sections" not in json.loads(jobs.config_of(one, "evaluate_reward", "test"))["evaluation"]


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ({"a": {"file": "x.json"}}, "evaluate_reward.a.file: belongs to rows of their own; state their `source`"),
        ({"a": {"source": "hub:o/n"}}, "evaluate_reward.a.file: missing; name the file (or glob)"),
        ({"a": {"source": "world"}}, "evaluate_reward.a.source: world holds no comparisons by itself"),
        ({"a": {"source": "x.json", "adapter": "labelled"}}, "evaluate_reward.a.adapter: expected one of "),
        ({"a/b": {}}, "evaluate_reward: 'a/b': a set's name names a folder"),
        ({"a": {"subsets": ["x"]}}, "evaluate_reward.a.subsets"),
        ({"a": {"sections": {"chat": ["x"]}}}, "evaluate_reward.a.sections: they group the subsets that a column"),
        ({"a": {"subset": "s", "sections": {"chat": []}}}, "evaluate_reward.a.sections.chat: no subset in it"),
        ({"a": {"subset": "s", "sections": {"chat": ["x", "x"]}}}, "evaluate_reward.a.sections.chat: names x twice"),
        ({"a": {"subset": "s", "sections": {"chat": {"x": 0}}}}, "evaluate_reward.a.sections.chat.x: expected a num"),
    ],
)
def test_a_mistake_is_one_sentence(sets: dict, sentence: str):
    with pytest.raises(UserError) as error:
        suite(sets)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_path_that_does_not_exist_is_named_before_any_job(tmp_path: Path):
    (tmp_path / "rows.json").write_text("[]")
    sets = {"a": {"source": str(tmp_path / "absent")}, "b": {"source": str(tmp_path), "file": "other*.json"}}
    with pytest.raises(UserError) as error:
        check_paths(suite(sets), "x.yaml")
    first, second = str(error.value).split("\n")
    assert first.startswith(f"x.yaml: evaluate_reward.a.source: {tmp_path}/absent")
    assert second.startswith("x.yaml: evaluate_reward.b.file: ")


VARIANTS = {"batch4": {"batch_size": 4}, "gold": {"half": "second", "seed": 1}}


def with_reward(**sections: Any) -> Suite:
    resolved = resolve(merge(yaml.safe_load(MINI), sections), "configs/x.yaml")
    assert isinstance(resolved, Suite)
    return resolved


def test_a_further_reward_model_is_trained_and_scores_every_answer():
    without, several = with_reward(reward={}), with_reward(reward={"half": "first", "variants": VARIANTS})
    new = {"reward_variant/batch4", "reward_variant/gold"}
    assert set(jobs_of(several)) - set(jobs_of(without)) == new
    assert inputs_of(several, "score", "sft")["variants"] == sorted(new)
    configs = {
        name: json.loads(jobs.config_of(several, stage, part))["reward"]
        for name, stage, part in (
            ("reward", "reward", None),
            ("batch4", "reward_variant", "batch4"),
            ("gold", "reward_variant", "gold"),
        )
    }
    assert configs["batch4"] == {**configs["reward"], "batch_size": 4}
    assert configs["gold"] == {**configs["reward"], "half": "second", "seed": 1}
    assert not {"half", "variants"} & json.loads(jobs.config_of(without, "reward"))["reward"].keys()


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"reward": {"variants": {"a": {"batch_size": 0}}}}, "reward.variants.a.batch_size: "),
        ({"reward": {"variants": {"a": {"seeds": [1]}}}}, "reward.variants.a.seeds: belongs to the section `reward`"),
        ({"reward": {"variants": {"a/b": {}}}}, "reward.variants: 'a/b': use letters"),
        ({"reward": {"variants": {"x_low": {}}}}, "reward.variants: 'x_low': use letters"),
        ({"report": {"gold": "gold"}}, "report.gold: reward.variants names no 'gold'"),
    ],
)
def test_a_mistake_in_a_further_reward_model_is_one_sentence(sections: dict, sentence: str):
    with pytest.raises(UserError) as error:
        with_reward(**sections)
    assert sentence in str(error.value) and "\n" not in str(error.value)
