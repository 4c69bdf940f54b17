"""Lists of a suite that name runs, policies, reward models and columns are checked before any job runs."""

from typing import Any

import pytest
import yaml

from conftest import MINI
from prefdag.config.loading import merge
from prefdag.config.sections.score import METRICS as NAMED
from prefdag.config.suite import Suite, resolve
from prefdag.errors import UserError
from prefdag.stages.score import METRICS

NAMES = "dpo, dpo-strong, simpo"
WITH_REWARD = {"score": {"reward": "trained"}, "pairs": {"reward": "vader"}}


def mistakes(**changes: Any) -> list[str]:
    with pytest.raises(UserError) as error:
        resolve(merge(yaml.safe_load(MINI), changes), "x.yaml")
    return str(error.value).removeprefix("x.yaml: ").split("\nx.yaml: ")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"report": {"compare": ["dpo", "dpo-storng"]}},
            f"report.compare: there is no run 'dpo-storng'; did you mean `dpo-strong`? the runs are {NAMES}",
        ),
        ({"report": {"compare": ["sft"]}}, f"report.compare: there is no run 'sft'; the runs are {NAMES}"),
        ({"report": {"compare": ["dpo", "dpo"]}}, "report.compare: 'dpo' is there twice; remove one"),
        (
            {"score": {"implicit": ["dop"]}},
            f"score.implicit: there is no run 'dop'; did you mean `dpo`? the runs are {NAMES}",
        ),
        ({"score": {"implicit": ["dpo", "dpo"]}}, "score.implicit: 'dpo' is there twice; remove one"),
        (
            {"generate": {"variants": {"cold": {"temperature": 0, "policies": ["sft", "simp0"]}}}},
            "generate.variants.cold.policies: there is no policy 'simp0'; did you mean `simpo`? the policies are "
            f"base, sft, {NAMES}",
        ),
        (
            {**WITH_REWARD, "reward": {"variants": {"half": {"seed": 1}}}, "report": {"gold": "halv"}},
            "report.gold: reward.variants names no 'halv'; did you mean `half`?",
        ),
        (
            {"judge": {"judges": ["rewrad"]}},
            "judge.judges: there is no column 'rewrad'; did you mean `reward`? the columns are ",
        ),
        ({"reward": None, "judge": {"judges": ["trained"]}}, "judge.judges: there is no column 'trained'; "),
        (
            {**WITH_REWARD, "reward": {"variants": {"half": {"seed": 1}}}, "judge": {"judges": ["trained_halv"]}},
            "judge.judges: there is no column 'trained_halv'; did you mean `trained_half`? ",
        ),
        (
            {"score": {"implicit": ["dpo"]}, "judge": {"judges": ["implicit_simpo"]}},
            "judge.judges: there is no column 'implicit_simpo'; did you mean `implicit_dpo`? ",
        ),
        (
            {"judge": {"against": "chosen", "judges": ["kl"]}, "generate": {"chosen": True}},
            "judge.judges: there is no column 'kl'; ",
        ),
    ],
)
def test_an_unknown_name_is_a_sentence_with_a_near_one(changes: dict[str, Any], sentence: str):
    (only,) = mistakes(**changes)
    assert only.startswith(sentence)


def test_every_unknown_name_is_stated_at_once():
    """Two names of one list, and those of the other lists."""
    sentences = mistakes(
        report={"compare": ["a", "b"]},
        score={"implicit": ["c"]},
        judge={"judges": ["d"]},
        generate={
            "variants": {"cold": {"temperature": 0, "policies": ["e"]}, "hot": {"top_p": 0.9, "policies": ["f"]}}
        },
    )
    assert [line.split("'")[1] for line in sentences] == ["d", "a", "b", "e", "f", "c"]


def test_every_column_of_scores_may_judge():
    """Reward models, implicit rewards, the truth and the user's metrics follow from the suite."""
    assert tuple(METRICS) == NAMED
    models = {**WITH_REWARD, "reward": {"variants": {"half": {"seed": 1}}}}
    score = {"reward": "trained", "implicit": ["dpo"], "metrics": ["mine.py:words"]}
    columns = ["reward", "trained", "trained_half", "untrained", "implicit_dpo", "kl", "k1", "k3", "words", *METRICS]
    changes = {**models, "score": score, "judge": {"judges": columns}}
    assert isinstance(resolve(merge(yaml.safe_load(MINI), changes), "x.yaml"), Suite)
    assert isinstance(resolve(merge(yaml.safe_load(MINI), {"judge": {"judges": ["vader"]}}), "x.yaml"), Suite)


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        (
            {
                "generate": {"max_prompts": "many"},
                "report": {"compare": ["absent"]},
                "evaluate_reward": {"test": {}},
                "reward": None,
            },
            [
                'generate.max_prompts: expected a whole number, got "many"',
                "evaluate_reward: there is no reward model; state the section `reward`",
                f"report.compare: there is no run 'absent'; the runs are {NAMES}",
            ],
        ),
        (
            {"report": {"samples": 0, "compare": ["absent"]}, "score": {"implicit": ["absent"]}},
            [
                "report.samples: expected a number of at least 1, got 0",
                f"score.implicit: there is no run 'absent'; the runs are {NAMES}",
            ],
        ),
    ],
)
def test_a_mistake_of_a_section_hides_no_mistake_between_others(changes: dict[str, Any], sentences: list[str]):
    assert mistakes(**changes) == sentences


@pytest.mark.parametrize(
    "changes",
    [
        {"reward": {"batch_size": 0}, "score": {"reward": "trained"}, "evaluate_reward": {"test": {}}},
        {"reward": {"batch_size": 0, "variants": {"half": {"seed": 1}}}, "report": {"gold": "half"}},
        {"pairs": {"reward": 3}, "judge": {"judges": ["trained"]}, "score": {"reward": 1}},
        {"model": 3, "data": 3, "pairs": 3, "sft": 3, "generate": 3, "score": 3, "judge": 3, "report": 3},
        {"sectoin": {}},
    ],
)
def test_a_section_with_a_mistake_is_not_held_against_others(changes: dict[str, Any]):
    """Only its own mistakes are stated: what it would state is not known."""
    assert {line.split(":")[0].split(".")[0] for line in mistakes(**changes)} <= changes.keys()
