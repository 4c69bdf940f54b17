"""`reward.source`: where it comes from, what is locked, which jobs read it, and what contradicts it."""

import json
from typing import Any

import pytest
import yaml

from conftest import MINI
from prefdag.config import jobs
from prefdag.config.hub_lock import repositories
from prefdag.config.suite import Suite, resolve
from prefdag.errors import UserError
from prefdag.planning.graph import inputs_of, jobs_of


def suite(reward: dict[str, Any], **changes: Any) -> Suite:
    values = {**yaml.safe_load(MINI), "reward": reward, **changes}
    resolved = resolve(values, "configs/x.yaml")
    assert isinstance(resolved, Suite)
    return resolved


def mistake(reward: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(UserError) as result:
        suite(reward, **changes)
    return str(result.value)


def test_a_repository_is_fetched_locked_and_read_by_the_stage() -> None:
    resolved = suite({"source": "hub:owner/rm@v2"})
    assert resolved.reward is not None and resolved.reward.source is not None
    assert resolved.reward.source.revision == "v2"
    (locked,) = repositories(reward=resolved.reward.origin)
    assert locked.key == "model owner/rm@v2"
    assert "fetch/reward" in jobs_of(resolved) and inputs_of(resolved, "reward")["source"] == ["fetch/reward"]
    config = json.loads(jobs.config_of(resolved, "fetch", "reward"))
    assert config["reward"]["source"] == "hub:owner/rm" and config["lock"]
    stage = json.loads(jobs.config_of(resolved, "reward"))
    assert stage["reward"]["source"]["revision"] == "v2"


def test_a_trained_reward_model_has_the_config_that_it_had() -> None:
    resolved = suite({})
    assert "source" not in json.loads(jobs.config_of(resolved, "reward"))["reward"]
    assert inputs_of(resolved, "reward")["source"] == [] and "fetch/reward" not in jobs_of(resolved)


@pytest.mark.parametrize(
    ("reward", "changes", "sentence"),
    [
        ({"source": "./rm", "learning_rate": 3e-5}, {}, "learning_rate: nothing trains the reward model"),
        ({"source": {"source": "./rm", "template": "alpaca"}}, {}, "template"),
        ({"source": {"source": "hub:a/b@x", "revision": "y"}}, {}, "revision: 'y', but source names 'x'"),
        ({}, {"pairs": {"reward": "trained"}}, "pairs.reward: a reward model trained here needs pairs first"),
        (
            {"source": "./rm"},
            {"runs": [{"name": "ppo", "method": "ppo", "value_from": "reward"}]},
            "runs.ppo.value_from: the reward model of reward.source has tokens of its own",
        ),
    ],
)
def test_contradictions_are_named(reward: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    assert sentence in mistake(reward, **changes)
