"""The jobs of on-policy rows: their folders, what they read, and what their config holds."""

import json

import yaml

from conftest import MINI
from prefdag.config import jobs
from prefdag.config.suite import Suite, resolve
from prefdag.planning.graph import inputs_of, jobs_of

ROWS = """
online: {batch_size: 4, max_steps: 4, learning_rate: 1e-3}
"""


def suite_with(*rows: dict) -> Suite:
    values = yaml.safe_load(MINI + ROWS)
    values["runs"] += rows
    suite = resolve(values, "configs/mini.yaml")
    assert isinstance(suite, Suite)
    return suite


def test_rows_are_jobs_of_their_stages_and_their_answers_follow() -> None:
    suite = suite_with(
        {"name": "ppo", "method": "ppo", "checkpoints": 1},
        {"name": "pairs", "method": "dpo", "online": {"labels": "soft"}},
    )
    folders = jobs_of(suite)
    assert {"policy/ppo", "online/pairs", "score/ppo", "score/ppo@step2", "judge/pairs"} <= set(folders)
    assert not {"preference/ppo", "preference/pairs"} & set(folders)
    assert inputs_of(suite, "generate", "ppo@step2")["policy"] == ["policy/ppo"]
    assert {"policy/ppo", "online/pairs"} <= set(inputs_of(suite, "report")["preferences"])


def test_a_job_reads_what_rewards_it_and_nothing_else() -> None:
    suite = suite_with(
        {"name": "gt", "method": "rloo"},
        {"name": "rm", "method": "ppo", "reward": "trained"},
        {"name": "value", "method": "ppo", "value_from": "reward"},
        {"name": "self", "method": "ppo", "reward": "implicit:dpo"},
    )
    read = {name: {key for key, each in inputs_of(suite, "policy", name).items() if each} for name in ("gt", "rm")}
    assert read == {"gt": {"policy", "prompts"}, "rm": {"policy", "prompts", "reward"}}
    assert inputs_of(suite, "policy", "value")["reward"] == ["reward"]
    assert inputs_of(suite, "policy", "self")["implicit"] == ["preference/dpo"]


def test_the_config_names_the_ground_truth() -> None:
    """An edit of `score.reward` reruns the runs that it rewards."""
    suite = suite_with({"name": "gt", "method": "rloo"})
    config = json.loads(jobs.config_of(suite, "policy", "gt"))
    assert config["online"]["reward"] == "vader" and config["online"]["samples"] == 4
    assert config["objective"]["method"] == "rloo" and set(config) == {"online", "objective"}
