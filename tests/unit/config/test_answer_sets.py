"""Sets of answers: their names, what each job may read, whom they are judged against, and mistakes in them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_plan import SIZE

from conftest import MINI, ROOT
from prefdag.cli.plan import job_costs
from prefdag.config import jobs
from prefdag.config.answer_sets import AnswerSet, weights_of
from prefdag.config.loading import merge
from prefdag.config.sections.preference import Preference
from prefdag.config.suite import Suite, resolve
from prefdag.errors import UserError

COLD = {"t0.25": {"temperature": 0.25}, "nucleus": {"top_p": 0.9, "policies": ["dpo"]}}
POLICIES = ["base", "sft", "dpo", "dpo-strong", "simpo"]


def suite(**changes: Any) -> Suite:
    result = resolve(merge(yaml.safe_load(MINI), changes), "x.yaml")
    assert isinstance(result, Suite)
    return result


def answers(result: Suite) -> list[str]:
    return [str(one) for one in jobs.answers(result)]


def against(result: Suite, name: str) -> str | None:
    other = jobs.against(result, AnswerSet.parse(name))
    return None if other is None else str(other)


def test_names() -> None:
    names = ["dpo", "dpo@t1", "dpo@step20", "sft@pool", "chosen@ood"]
    sets = [AnswerSet("dpo"), AnswerSet("dpo", "t1"), AnswerSet("dpo", step=20), AnswerSet("sft", "pool")]
    assert [*map(AnswerSet.parse, names)] == [*sets, AnswerSet("chosen", "ood")]
    assert [str(AnswerSet.parse(name)) for name in names] == names
    assert weights_of(Path("a/manifest.json")) == Path("a/model")
    assert weights_of(Path("a/manifest.json"), 20) == Path("a/checkpoints/20")


def test_the_documented_example_resolves() -> None:
    """With its 7 checkpoints of 400 steps, 50 apart."""
    text = (ROOT / "docs/howto/evaluation.md").read_text()
    example = yaml.safe_load(re.search(r"```yaml\n(generate:.*?)```", text, re.S)[1])
    result = answers(suite(**example))
    assert {"dpo@step50", "dpo@step350", "sft@t0.25", "dpo@nucleus", "sft@pool", "chosen"} < set(result)


def test_a_variant_of_a_file_below_is_removed_by_null() -> None:
    runs = [{"name": "dpo", "method": "dpo"}]
    removed = suite(generate={"variants": {**COLD, "warm": None}}, runs=runs)
    assert list(removed.generate.variants) == list(COLD)
    assert removed.generate == suite(generate={"variants": COLD}, runs=runs).generate


def test_without_variants_the_answers_are_the_policies() -> None:
    assert answers(suite()) == jobs.policies(suite()) == POLICIES


def test_every_kind_of_answers() -> None:
    """Of 5 steps, two checkpoints between the first and the last: 5 / 3 and 10 / 3, rounded down."""
    runs = yaml.safe_load(MINI)["runs"]
    runs[0]["checkpoints"] = 2
    result = suite(generate={"variants": COLD, "best_of": 4, "chosen": True}, runs=runs)
    cold = [f"{policy}@t0.25" for policy in POLICIES]
    assert answers(result) == [
        *POLICIES, *cold, "dpo@nucleus", "dpo@step1", "dpo@step3", "sft@pool", "chosen",
    ]  # fmt: skip
    judged = {name: against(result, name) for name in answers(result) if against(result, name)}
    assert judged == {
        **dict.fromkeys(["base", "dpo", "dpo-strong", "simpo"], "sft"),
        **dict.fromkeys(["base@t0.25", "dpo@t0.25", "dpo-strong@t0.25", "simpo@t0.25"], "sft@t0.25"),
        **dict.fromkeys(["dpo@nucleus", "dpo@step1", "dpo@step3"], "sft"),
    }


def with_other_prompts(against: str = "chosen", **variants: Any) -> Suite:
    data = {"source": "data", "world": None, "train": "t.jsonl", "ood": "o.jsonl"}
    other = {"t0": {"temperature": 0}, "ood": {"prompts": "ood"}, "ood-t0": {"prompts": "ood", "temperature": 0}}
    return suite(
        data=data, prepare={"adapter": "pairs"}, generate={"variants": variants or other}, judge={"against": against}
    )


def test_prompts_of_another_distribution_are_held_against_their_own_references() -> None:
    """`ood` alone changes no setting of sampling and is still another set of answers."""
    result = with_other_prompts()
    assert answers(result)[-3:] == ["chosen", "chosen@ood", "chosen@ood-t0"]
    for name, other in (
        ("dpo", "chosen"),
        ("sft@t0", "chosen"),
        ("sft@ood", "chosen@ood"),
        ("dpo@ood-t0", "chosen@ood-t0"),
    ):
        assert against(result, name) == other
    assert against(result, "chosen@ood") is None and jobs.answering_folder(result, AnswerSet("chosen", "ood")) is None
    for folder, names in (("comparisons", ("dpo", "sft@t0", "chosen")), ("ood", ("dpo@ood", "chosen@ood-t0"))):
        for name in names:
            assert jobs.prompts_folder(result, AnswerSet.parse(name)) == f"prepare/{folder}"
    assert jobs.config_of(result, "generate", "dpo@ood") == jobs.config_of(result, "generate", "dpo")
    expected = json.loads(jobs.config_of(result, "report"))["answers"]
    assert {entry["name"] for entry in expected if entry["prompts"] == "ood"} == {
        name for name in answers(result) if "@ood" in name
    }
    assert against(with_other_prompts("sft"), "dpo@ood") == "sft@ood"


def test_other_prompts_are_there_and_answered_or_a_sentence_says_so() -> None:
    with pytest.raises(UserError, match="data.ood: nothing reads it"):
        with_other_prompts(t0={"temperature": 0})
    with pytest.raises(UserError, match="data.ood: missing; generate.variants.far answers these prompts"):
        suite(generate={"variants": {"far": {"prompts": "ood"}}})
    with pytest.raises(UserError, match="prompts differs, so SFT's own answers are no match"):
        with_other_prompts("sft", far={"prompts": "ood", "policies": ["dpo"]})


def test_checkpoints_lie_evenly_between_the_ends() -> None:
    for steps, num, saved in ((60, 3, (15, 30, 45)), (5, 4, (1, 2, 3, 4)), (10, 2, (3, 6)), (10, 0, ())):
        result = Preference(batch_size=1, learning_rate=1, max_steps=steps, checkpoints=num)
        assert result.kept_steps == saved


def test_a_job_may_read_its_own_settings_only() -> None:
    """Two more sets of answers change no other set's config; each states what differs."""
    before, result = suite(), suite(generate={"variants": COLD, "best_of": 4, "best_of_prompts": 6, "chosen": True})
    for name in answers(before):
        for stage in ("generate", "score"):
            assert jobs.config_of(before, stage, name) == jobs.config_of(result, stage, name)
    default = json.loads(jobs.config_of(result, "generate", "sft"))["generate"]

    def differing(name: str) -> dict[str, Any]:
        stated = json.loads(jobs.config_of(result, "generate", name))
        assert set(stated) == {"generate"}
        return {key: value for key, value in stated["generate"].items() if default[key] != value}

    assert differing("dpo@nucleus") == {"top_p": 0.9}
    assert differing("base@t0.25") == {"temperature": 0.25}
    assert differing("sft@pool") == {"num_samples": 4, "max_prompts": 6}
    assert json.loads(jobs.config_of(result, "generate", "chosen")) == {"generate": {"max_prompts": None}}


def test_a_checkpoints_jobs_say_which_weights() -> None:
    result = suite(preference={"checkpoints": 1})
    for stage in ("generate", "score"):
        of_policy = json.loads(jobs.config_of(result, stage, "dpo@step2"))
        assert of_policy.pop("checkpoint") == 2
        assert of_policy == json.loads(jobs.config_of(result, stage, "dpo"))


def test_the_estimate_counts_every_set() -> None:
    """A variant of half the prompts costs half: 5 policies' 10 prompts, then dpo's and sft's 5."""
    half = {"policies": ["sft", "dpo"], "max_prompts": 5}
    result, more = (
        {one.stage: one for one in job_costs(suite(size=SIZE, generate=generate), suite(size=SIZE).size)}
        for generate in ({"max_prompts": 10}, {"max_prompts": 10, "variants": {"half": half}})
    )
    assert (result["generate"].jobs, more["generate"].jobs, more["score"].jobs) == (5, 7, 7)
    assert more["score"].hours == pytest.approx(result["score"].hours * 60 / 50)


@pytest.mark.parametrize(
    ("generate", "sentence"),
    [
        ({"variants": {"a": {"temperature": 1}}}, "variants.a: its settings are those of generate"),
        ({"variants": {"a": {"policies": ["sft"]}}}, "variants.a: its settings are those of generate"),
        ({"variants": {"a": {"top_p": 0.5}, "b": {"top_p": 0.5}}}, "variants.b: its settings are those of variants.a"),
        ({"variants": {"a": {"num_samples": 4}}, "best_of": 4}, "best_of: its settings are those of variants.a"),
        ({"variants": {"a b": {"top_p": 0.5}}}, "generate.variants: expected letters, digits"),
        ({"variants": {"pool": {"top_p": 0.5}}}, "variants.pool: this name is taken by other answers"),
        ({"variants": {"step7": {"top_p": 0.5}}}, "variants.step7: this name is taken by other answers"),
        ({"variants": {"a/b": {"top_p": 0.5}}}, "expected letters, digits"),
        ({"variants": {"a@b": {"top_p": 0.5}}}, "expected letters, digits"),
        ({"variants": {"a": {"threads": 2}}}, "generate.variants.a.threads: unknown key"),
        (
            {"variants": {"a": {"top_p": 0.5, "policies": ["dpo", "ipo"]}}},
            "no policy 'ipo'; did you mean `simpo`? the ",
        ),
        ({"variants": {"a": {"num_samples": 2, "policies": ["dpo"]}}}, "num_samples differs, so SFT's own answers"),
        ({"best_of": 1}, "generate.best_of: expected a number of at least 2, got 1"),
        ({"best_of": 4, "temperature": 0}, "best_of: samples at temperature 0 are all equal"),
        ({"best_of_prompts": 4}, "best_of_prompts: there is no pool"),
        ({"best_of_temperature": 0.7}, "best_of_temperature: there is no pool"),
    ],
)
def test_mistakes_are_sentences(generate: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        suite(generate=generate)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("preference", "sentence"),
    [
        ({"checkpoints": 2, "max_steps": None}, "checkpoints: state max_steps as well"),
        ({"checkpoints": 5}, "checkpoints: 5 steps have room for 4 before the last"),
    ],
)
def test_checkpoints_need_steps_to_count_from(preference: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        suite(preference=preference)


@pytest.mark.parametrize("name", ["chosen", "sft", "dpo@t1"])
def test_a_run_has_no_name_of_other_answers(name: str) -> None:
    with pytest.raises(UserError, match="this name is reserved|expected letters"):
        suite(runs=[{"name": name, "method": "dpo"}])


def test_the_report_is_told_how_answers_were_drawn() -> None:
    """By name; nothing of the chosen responses, nor of seeds and numbers, which no figure shows."""
    expected = json.loads(jobs.config_of(suite(generate={"variants": COLD, "chosen": True}), "report"))["answers"]
    by_name = {entry.pop("name"): entry for entry in expected}
    assert list(by_name) == answers(suite(generate={"variants": COLD, "chosen": True}))
    assert set(by_name["dpo"]) == {"prompts", "temperature", "top_p", "max_new_tokens"} and by_name["chosen"] == {
        "prompts": "test"
    }
    assert by_name["dpo@t0.25"] == {**by_name["dpo"], "temperature": 0.25}
    assert by_name["dpo@nucleus"] == {**by_name["dpo"], "top_p": 0.9}


def test_the_pool_has_a_temperature_of_its_own() -> None:
    """Greedy answers, and Best-of-N from warm samples."""
    generate = suite(generate={"temperature": 0, "best_of": 4, "best_of_temperature": 0.7}).generate
    assert (generate.settings("").temperature, generate.settings("pool").temperature) == (0, 0.7)
