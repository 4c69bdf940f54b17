"""Rounds as jobs: their chain, what each job reads, and one sentence for each mistake."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import MINI
from prefdag.config import jobs
from prefdag.config.answer_sets import AnswerSet
from prefdag.config.suite import Suite, resolve
from prefdag.errors import UserError
from prefdag.planning.graph import inputs_of, jobs_of
from prefdag.planning.plan_run import objectives_in_doubt


def suite_of(*rows: dict[str, Any], **sections: Any) -> Suite:
    suite = resolve({**yaml.safe_load(MINI), "runs": list(rows), **sections}, "mini.yaml")
    assert isinstance(suite, Suite)
    return suite


def row(**keys: Any) -> dict[str, Any]:
    return {"name": "it", "method": "dpo", "rounds": 3, "pairs": "max_min", **keys}


def test_a_round_follows_the_one_before_it():
    suite = suite_of(row())
    assert inputs_of(suite, "generate", "it@samples1")["policy"] == ["sft"]
    assert inputs_of(suite, "generate", "it@samples3")["policy"] == ["preference/it@round2"]
    assert inputs_of(suite, "pairing", "it@round2") == {
        "generations": ["generate/it@samples2"],
        "scores": ["score/it@samples2"],
    }
    assert inputs_of(suite, "reference", "it@round2") == {
        "policy": ["preference/it@round1"],
        "comparisons": ["pairing/it@round2"],
    }
    assert inputs_of(suite, "preference", "it@round2") == {
        "policy": ["preference/it@round1"],
        "comparisons": ["pairing/it@round2"],
        "reference": ["reference/it@round2"],
        "start": [],
    }
    assert jobs.folder_of(suite, "it") == "preference/it@round3"
    assert inputs_of(suite, "report")["preferences"] == [f"preference/it@round{number}" for number in (1, 2, 3)]


def test_the_first_reference_in_every_round_is_sft():
    suite = suite_of(row(pairs={"law": "max_min", "reference": "sft"}))
    read = inputs_of(suite, "preference", "it@round2")
    assert (read["policy"], read["start"]) == (["sft"], ["preference/it@round1"])
    assert inputs_of(suite, "preference", "it@round1")["start"] == []
    assert inputs_of(suite, "reference", "it@round3")["policy"] == ["sft"]


def test_a_loss_without_reference_needs_no_cache():
    suite = suite_of(row(method="simpo"))
    assert inputs_of(suite, "preference", "it@round2")["reference"] == []
    assert not [folder for folder in jobs_of(suite) if folder.startswith("reference/")]


def test_each_round_is_answered_and_shown():
    suite = suite_of(row(max_steps=10, checkpoints=1))
    names = [str(one) for one in jobs.answers(suite) if one.policy == "it"]
    assert names == ["it", "it@step5", "it@step15", "it@step25", "it@round1", "it@round2"]
    folders = {name: jobs.answering_folder(suite, AnswerSet.parse(name)) for name in names}
    assert folders["it"] == folders["it@step25"] == "preference/it@round3"
    assert folders["it@round1"] == folders["it@step5"] == "preference/it@round1"
    assert '"checkpoint":5' in jobs.config_of(suite, "generate", "it@step25")


def test_jobs_of_a_round_do_not_depend_on_later_ones():
    """No job of rounds 1 to 3 changes if there are five."""
    before, after = suite_of(row()), suite_of(row(rounds=5))
    for folder in [each for each in jobs_of(before) if "@round" in each or "@samples" in each]:
        stage, _, name = folder.partition("/")
        assert jobs.config_of(before, stage, name) == jobs.config_of(after, stage, name), folder
        assert inputs_of(before, stage, name) == inputs_of(after, stage, name), folder


def test_rewards_of_the_samples():
    dpo = {"name": "dpo", "method": "dpo"}
    read = {
        reward: inputs_of(suite_of(dpo, row(pairs={"law": "max_min", "reward": reward})), "score", "it@samples2")
        for reward in ("ground_truth", "vader", "trained", "implicit:dpo")
    }
    assert read["ground_truth"] == read["vader"]
    assert not read["vader"]["reward"] and read["trained"]["reward"] == ["reward"]
    assert read["implicit:dpo"]["implicit"] == ["preference/dpo"]
    suite = suite_of(dpo, row(pairs={"law": "max_min", "reward": "implicit:dpo"}))
    assert '"column":"implicit_dpo"' in jobs.config_of(suite, "pairing", "it@round1")


def test_seeds_and_grids_draw_other_samples():
    suite = suite_of(row(seeds=[0, 1]))
    configs = {jobs.config_of(suite, "generate", f"it-seed{seed}@samples1") for seed in (0, 1)}
    assert len(configs) == 2
    grid = {"name": "it", "method": "dpo", "beta": [0.1, 1], "rounds": 2, "pairs": "max_min"}
    assert [run.name for run in suite_of(grid=[grid]).runs] == ["it-beta0.1", "it-beta1"]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"rounds": 21}, "rounds: expected at most 20, got 21"),
        ({"rounds": 0}, "rounds: expected a number of at least 1, got 0"),
        ({"pairs": "best"}, "runs.it.pairs.law: expected one of"),
        ({"pairs": {"law": "max_min", "beta": 0.5}}, "beta: the law max_min does not read it"),
        ({"pairs": {"law": "rso", "threshold": 0}}, "threshold: the law rso does not read it"),
        ({"pairs": {"law": "best_of_n", "labels": "hard"}}, "labels: the law best_of_n does not read it"),
        ({"pairs": {"law": "rso", "draws": 4}}, "keep: 8 of 4 draws cannot be accepted"),
        ({"pairs": "best_of_n"}, "best_of_n keeps the best response alone, and dpo compares two"),
        ({"method": "plackett_luce"}, "plackett_luce takes rankings, and rounds form pairs"),
        ({"method": "simpo", "pairs": {"law": "max_min", "reference": "sft"}}, "simpo reads no reference"),
        ({"dataset": "rankings"}, "runs.it.dataset: a run with `pairs` draws its own"),
        ({"pairs": {"law": "max_min", "reward": "vaderr"}}, "pairs.reward: expected one of vader, classifier, trained"),
        ({"pairs": {"law": "max_min", "reward": "implicit:no"}}, "pairs.reward: there is no run 'no'"),
        ({"pairs": {"law": "max_min", "reward": "implicit:it"}}, "it has another reference|the loss of it has another"),
        ({"pairs": {"law": "max_min", "reward": "classifier"}}, "pairs.reward: `classifier`, so the section"),
        ({"pairs": None}, "pairs"),
        (
            {"pairs": {"law": "max_min", "reward": "judge:no"}},
            "runs.it.pairs.reward: judge:no: no model of `judge.judges`",
        ),
        ({"pairs": {"law": "max_min", "reward": "judge:m", "labels": "soft"}}, "labels: a judge's verdicts are"),
        ({"discriminator": {}}, "runs.it.discriminator.gold_pairs: missing"),
        ({"discriminator": {"gold_pairs": 0}}, "gold_pairs: expected a number of at least 1, got 0"),
        ({"discriminator": {"gold_pairs": 8, "budget": 3}}, "runs.it.discriminator.budget"),
        ({"discriminator": {"gold_pairs": 8, "gold": "trained"}}, "discriminator.gold: expected one of vader"),
        ({"discriminator": {"gold_pairs": 8, "gold": "judge:no"}}, "discriminator.gold: judge:no: no model"),
        (
            {"discriminator": {"gold_pairs": 8, "gold": "classifier"}},
            "discriminator.gold: `classifier`, so the section",
        ),
        (
            {"discriminator": {"gold_pairs": 8, "gold": "judge:m", "labels": "bradley_terry"}},
            "discriminator.labels: a judge",
        ),
        (
            {"pairs": {"law": "max_min", "reward": "vader"}, "discriminator": {"gold_pairs": 8}},
            "pairs.reward: the row's",
        ),
    ],
)
def test_a_mistake_is_one_sentence(keys: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=sentence.replace("[", r"\[")) as mistake:
        suite_of(row(**keys))
    assert "\n" not in str(mistake.value)


def test_rounds_without_pairs_are_refused():
    with pytest.raises(UserError, match=r"runs.it.pairs: missing"):
        suite_of({"name": "it", "method": "dpo", "rounds": 2})


def test_a_trained_reward_needs_its_section():
    values = yaml.safe_load(MINI)
    values.pop("reward")
    values["runs"] = [row(pairs={"law": "max_min", "reward": "trained"})]
    with pytest.raises(UserError, match=r"runs.it.pairs.reward: `trained`, so the section `reward`"):
        resolve(values, "mini.yaml")


def test_a_discriminator_is_trained_on_the_gold_labels_of_all_rounds_so_far():
    suite = suite_of(row(discriminator={"gold_pairs": 8}))
    assert inputs_of(suite, "gold", "it@round2") == {"generations": ["generate/it@samples2"], "classifier": []}
    assert inputs_of(suite, "discriminator", "it@round2") == {
        "policy": ["sft"],
        "comparisons": ["prepare/comparisons"],
        "gold": ["gold/it@round1", "gold/it@round2"],
        "start": [],
    }
    assert inputs_of(suite, "score", "it@samples2")["reward"] == ["discriminator/it@round2"]
    assert json.loads(jobs.config_of(suite, "score", "it@samples2"))["score"]["reward"] == "trained"
    gold = json.loads(jobs.config_of(suite, "gold", "it@round2"))
    assert gold["gold"] == {"num_pairs": 8, "by": "vader", "judge": None, "labels": "hard"} and gold["round"] == 2
    continued = suite_of(row(discriminator={"gold_pairs": 8, "start": "previous"}))
    starts = [inputs_of(continued, "discriminator", f"it@round{number}")["start"] for number in (1, 2)]
    assert starts == [["reward"], ["discriminator/it@round1"]]


def test_jobs_of_a_discriminator_do_not_depend_on_later_rounds():
    before, after = (suite_of(row(rounds=number, discriminator={"gold_pairs": 8})) for number in (3, 5))
    of_rounds = [each for each in jobs_of(before) if "@round" in each or "@samples" in each]
    assert len(of_rounds) == 3 * 7 + 2 * 3  # seven jobs of a round, and answers of rounds 1 and 2
    for folder in of_rounds:
        stage, _, name = folder.partition("/")
        assert jobs.config_of(before, stage, name) == jobs.config_of(after, stage, name), folder
        assert inputs_of(before, stage, name) == inputs_of(after, stage, name), folder


def test_a_judge_rates_the_samples():
    judge = {"judges": ["reward", {"model": "m", "prompt": "mine.txt"}]}
    by_judge = {"law": "max_min", "reward": "judge:m"}
    suite = suite_of(
        row(pairs=by_judge), row(name="d2po", discriminator={"gold_pairs": 8, "gold": "judge:m"}), judge=judge
    )
    assert inputs_of(suite, "pairing", "it@round2")["scores"] == ["rating/it@samples2"]
    assert "score/it@samples2" not in jobs_of(suite)
    assert json.loads(jobs.config_of(suite, "rating", "it@samples2"))["rating"]["judge"]["model"] == "m"
    assert json.loads(jobs.config_of(suite, "gold", "d2po@round1"))["gold"]["judge"]["model"] == "m"
    for stage, name in (("rating", "it@samples2"), ("gold", "d2po@round1")):
        assert jobs.user_files_of(suite, stage, name) == (Path("mine.txt"),)


def test_a_discriminator_needs_settings_and_scores_that_go_together():
    values = yaml.safe_load(MINI) | {"runs": [row(discriminator={"gold_pairs": 8})]}
    without = {key: value for key, value in values.items() if key != "reward"}
    with pytest.raises(UserError, match="runs.it.discriminator: its settings are those of the section `reward`, which"):
        resolve(without, "mini.yaml")
    with pytest.raises(UserError, match="runs.it.discriminator: `reward.source` names a model that nothing trains"):
        suite_of(row(discriminator={"gold_pairs": 8}), reward={"source": "hf://owner/model"})
    judge = {"judges": ["reward", {"model": "m", "prompt": "summarisation-simple"}]}
    by_judge = row(discriminator={"gold_pairs": 8, "gold": "judge:m"})
    with pytest.raises(UserError, match="discriminator.gold: a judge gives no scores, which `reward.margin: scores`"):
        suite_of(by_judge, judge=judge, reward={**values["reward"], "margin": "scores"})


def test_an_implicit_reward_needs_one_reference():
    score = {"reward": "vader", "implicit": ["it"]}
    with pytest.raises(UserError, match=r"score.implicit: the loss of it has another reference in each round"):
        suite_of(row(), score=score)
    suite = suite_of(row(pairs={"law": "max_min", "reference": "sft"}), score=score)
    assert inputs_of(suite, "score", "sft")["implicit"] == ["preference/it@round3"]


def test_a_setting_without_optimum_is_named():
    assert objectives_in_doubt(suite_of(row(pairs={"law": "max_min", "labels": "bradley_terry"}))) == []
    (line,) = objectives_in_doubt(suite_of(row()))
    assert line.startswith("runs.it: hard labels have no interior optimum")


def test_soft_labels_are_for_losses_of_pairs_alone():
    suite = suite_of(row(pairs={"law": "max_min", "labels": "soft"}))
    assert '"labels":"soft"' in jobs.config_of(suite, "preference", "it@round2")
    assert '"labels"' not in jobs.config_of(suite_of(row()), "preference", "it@round2")
    assert objectives_in_doubt(suite) == []
    for method in ("kto", "odpo", "aot"):
        with pytest.raises(UserError, match=rf"runs.it.pairs.labels: {method} needs more than the log-probs of two"):
            suite_of(row(method=method, pairs={"law": "max_min", "labels": "soft"}))


def test_a_users_function_scores_the_samples(tmp_path: Path):
    suite = resolve(
        {**yaml.safe_load(MINI), "runs": [row(pairs={"law": "max_min", "reward": "mine.py:short"})]},
        str(tmp_path / "mini.yaml"),
    )
    assert isinstance(suite, Suite)
    read = inputs_of(suite, "score", "it@samples2")
    assert read == {"generations": ["generate/it@samples2"], "reference": ["sft"]}
    path = Path(os.path.relpath(tmp_path / "mine.py"))
    assert f'"user_reward":"{path}:short"' in jobs.config_of(suite, "score", "it@samples2")
    assert jobs.user_files_of(suite, "score", "it@samples2") == (path,)
    assert jobs.user_files_of(suite, "score", "it") == ()
    assert "user_reward" not in jobs.config_of(suite, "score", "it")


def test_the_report_states_the_optimum():
    suite = suite_of(
        {"name": "dpo", "method": "dpo"}, row(), row(name="soft", pairs={"law": "max_min", "labels": "soft"})
    )
    runs = {run["name"]: run for run in json.loads(jobs.config_of(suite, "report"))["runs"]}
    assert "optimum" not in runs["dpo"]
    assert runs["it"]["optimum"].startswith("none: with labels without noise")
    assert runs["soft"]["optimum"].startswith("pi*(beta / 3)")
