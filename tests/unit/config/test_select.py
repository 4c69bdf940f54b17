"""The section `select`: candidates of each row, the jobs that choose, and grids that are no fair search."""

import json
from typing import Any

import pytest

from conftest import ROOT
from prefdag.config import jobs
from prefdag.config.loading import read_yaml
from prefdag.config.suite import Suite, resolve
from prefdag.errors import UserError
from prefdag.planning.graph import inputs_of, jobs_of

DPO = {"name": "dpo", "method": "dpo", "beta": 0.1, "seeds": [0, 1], "max_steps": 8, "checkpoints": 1}
RLOO = {"name": "rloo", "method": "rloo", "batch_size": 8, "samples": 2}
SELECT = {"grid": {"learning_rate": ["5e-4", 0.002]}, "kl": 5}


QUICKSTART = read_yaml(ROOT / "configs/quickstart.yaml")
QUICKSTART["generate"] = {**QUICKSTART["generate"], "variants": {}}  # which name the policies of its rows


def suite(select: dict[str, Any] | None = None, rows: tuple = (DPO, RLOO), **sections: Any) -> Suite:
    values = {**QUICKSTART, "runs": [dict(row) for row in rows], **sections}
    resolved = resolve({**values, "select": SELECT if select is None else select}, "s.yaml")
    assert isinstance(resolved, Suite)
    return resolved


def test_candidates_differ_in_the_grid_and_the_seed_alone() -> None:
    one = suite()
    assert [run.name for run in one.runs] == ["dpo-seed0", "dpo-seed1", "rloo"]
    names = [run.name for run in one.trained]
    assert names[:2] == ["dpo-learning_rate5e-4-seed0", "dpo-learning_rate0.002-seed0"]
    assert len(names) == 6
    config = json.loads(jobs.config_of(one, "preference", "dpo-learning_rate5e-4-seed1"))["preference"]
    assert (config["learning_rate"], config["seed"], config["max_steps"]) == (0.0005, 1, 8)
    assert one.runs[0].candidates[0].setting == {"learning_rate": 0.0005}


def test_the_graph_tests_the_chosen_training_alone() -> None:
    """Candidates answer validation prompts; the answers to test prompts are those of `selected`, checkpoints too."""
    one = suite()
    folders = jobs_of(one)
    assert inputs_of(one, "generate", "dpo-seed1")["policy"] == ["selected/dpo-seed1"]
    assert inputs_of(one, "generate", "dpo-seed1@step4")["policy"] == ["selected/dpo-seed1"]
    assert inputs_of(one, "selected", "dpo-seed1") == {
        "choice": ["choose/dpo"],
        "candidates": [f"preference/dpo-learning_rate{rate}-seed1" for rate in ("5e-4", "0.002")],
    }
    assert inputs_of(one, "choose", "dpo")["scores"] == [
        f"score/dpo-learning_rate{rate}-seed{seed}@validation" for rate in ("5e-4", "0.002") for seed in (0, 1)
    ]
    assert inputs_of(one, "report")["preferences"] == ["selected/dpo-seed0", "selected/dpo-seed1", "selected/rloo"]
    assert inputs_of(one, "report")["choices"] == ["choose/dpo", "choose/rloo"]
    answers = [one for one in folders if "learning_rate" in one and one.startswith(("generate", "score"))]
    assert len(answers) == 12 and all(folder.endswith("@validation") for folder in answers)
    assert folders.index("choose/dpo") < folders.index("selected/dpo-seed0") < folders.index("generate/dpo-seed0")


def test_validation_answers_say_so_and_others_do_not() -> None:
    one = suite()
    config = json.loads(jobs.config_of(one, "generate", "rloo-learning_rate0.002@validation"))
    assert config.pop("split") == "validation"
    assert config == json.loads(jobs.config_of(one, "generate", "rloo"))


def test_a_win_rate_is_judged_on_validation_prompts_against_sft() -> None:
    one = suite({"grid": {"learning_rate": [1e-4, 1e-3]}, "criterion": "win_rate"})
    assert inputs_of(one, "choose", "rloo")["judges"] == [
        f"judge/rloo-learning_rate{rate}@validation" for rate in ("0.0001", "0.001")
    ]
    assert inputs_of(one, "judge", "rloo-learning_rate0.001@validation")["against"] == ["score/sft@validation"]


EARLY = {**SELECT, "early_stopping": True}
ROWS = (DPO, {**RLOO, "max_steps": 8, "checkpoints": 1})


def test_with_early_stopping_checkpoints_are_candidates_of_the_same_trainings() -> None:
    less, more = suite(rows=ROWS), suite(EARLY, rows=ROWS)
    assert inputs_of(more, "choose", "dpo")["scores"] == [
        f"score/dpo-learning_rate{rate}-seed{seed}@{variant}"
        for rate in ("5e-4", "0.002")
        for variant in ("validation-step4", "validation")
        for seed in (0, 1)
    ]
    assert json.loads(jobs.config_of(more, "choose", "dpo"))["steps"] == [4, 8]
    config = json.loads(jobs.config_of(more, "generate", "rloo-learning_rate0.002@validation-step4"))
    assert (config.pop("checkpoint"), config["split"]) == (4, "validation")
    assert config == json.loads(jobs.config_of(more, "generate", "rloo-learning_rate0.002@validation"))
    scoring = json.loads(jobs.config_of(more, "score", "rloo-learning_rate0.002@validation-step4"))
    assert scoring.pop("checkpoint") == 4 and scoring == json.loads(jobs.config_of(more, "score", "rloo"))
    new = set(jobs_of(more)) - set(jobs_of(less))
    assert len(new) == 12 and all(folder.endswith("@validation-step4") for folder in new)
    same = set(jobs_of(less)) - {"choose/dpo", "choose/rloo"}
    assert all(jobs.config_of(less, *split(one)) == jobs.config_of(more, *split(one)) for one in same)


def split(folder: str) -> tuple[str, str | None]:
    stage, _, name = folder.partition("/")
    return stage, name or None


def test_checkpoints_by_win_rate_are_judged_against_sft() -> None:
    one = suite({"grid": {"learning_rate": [1e-3]}, "criterion": "win_rate", "early_stopping": True}, rows=ROWS)
    judges = inputs_of(one, "choose", "rloo")["judges"]
    assert judges == [f"judge/rloo-learning_rate0.001@{name}" for name in ("validation-step4", "validation")]
    assert inputs_of(one, "judge", "rloo-learning_rate0.001@validation-step4")["against"] == ["score/sft@validation"]


@pytest.mark.parametrize(
    ("select", "rows", "message"),
    [
        (EARLY, (DPO, RLOO), "s.yaml: runs.rloo.checkpoints: early_stopping chooses between checkpoints, and this row"),
        ({**EARLY, "budget": 3}, ROWS, "select.grid: 4 candidates (2 settings at 2 lengths), and the budget is 3"),
        (
            EARLY,
            (DPO, {**ROWS[1], "checkpoints": 2}),
            "select.early_stopping: the numbers of checkpoints differ (rloo 2, dpo 1), so the search would not be fair",
        ),
        (
            {**EARLY, "grid": {"max_steps": [8, 16]}},
            ROWS,
            "select.grid.max_steps: with early_stopping the lengths are those of the checkpoints; leave one",
        ),
        (
            {
                "grid": {"learning_rate": [1e-3]},
                "rows": ["dpo"],
                "criterion": "held_out_accuracy",
                "early_stopping": True,
            },
            ROWS,
            "select.early_stopping: checkpoints have no held-out accuracy",
        ),
    ],
)
def test_mistakes_of_early_stopping(select: dict[str, Any], rows: tuple, message: str) -> None:
    with pytest.raises(UserError) as caught:
        suite(select, rows)
    assert message in str(caught.value)


def test_steps_of_checkpoints_that_a_section_states_may_not_depend_on_the_choice() -> None:
    section = {**QUICKSTART["preference"], "max_steps": 8, "checkpoints": 1}
    with pytest.raises(UserError, match=r"runs\.dpo\.checkpoints: their steps depend on the choice of max_steps"):
        suite({"grid": {"max_steps": [4, 8]}, "kl": 5}, ({"name": "dpo", "method": "dpo"},), preference=section)


def test_an_edit_of_the_grid_changes_no_other_candidate() -> None:
    """A further value adds jobs, and the config of `choose` alone changes."""
    less, more = suite(), suite({**SELECT, "grid": {"learning_rate": ["5e-4", 0.002, 0.1]}})
    assert set(jobs_of(less)) < set(jobs_of(more))
    changed = []
    for folder in jobs_of(less):
        stage, _, name = folder.partition("/")
        if jobs.config_of(less, stage, name or None) != jobs.config_of(more, stage, name or None):
            changed.append(folder)
    assert changed == ["choose/dpo", "choose/rloo"]


def test_rows_may_have_their_own_grids_and_others_no_search() -> None:
    grid = {"dpo": {"beta": [0.1, 0.3]}, "rloo": {"learning_rate": [1e-3, 2e-3]}}
    one = suite({"grid": grid, "kl": 5})
    assert [run.setting for run in one.run("rloo").candidates] == [{"learning_rate": 1e-3}, {"learning_rate": 2e-3}]
    alone = suite({**SELECT, "rows": ["rloo"]})
    assert inputs_of(alone, "generate", "dpo-seed0")["policy"] == ["preference/dpo-seed0"]
    assert not suite({**SELECT, "rows": ["rloo"]}).run("dpo-seed0").candidates


UNEQUAL = {"dpo": {"learning_rate": [1e-4, 1e-3]}, "rloo": {"learning_rate": [1e-3]}}


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (
            {"grid": UNEQUAL, "kl": 5},
            "select.grid: the sizes of the grids differ (dpo 2, rloo 1), so the search would not",
        ),
        ({**SELECT, "budget": 1}, "select.grid: 2 candidates, and the budget is 1"),
        ({**SELECT, "rows": ["ppo"]}, "select.rows: there is no row 'ppo'; the rows are dpo, rloo"),
        ({"grid": {"dpo": {"beta": [1, 2]}}, "kl": 5}, "select.grid: no grid for the row rloo; add one"),
        (
            {"grid": {**UNEQUAL, "nope": {}}, "kl": 5},
            "select.grid.nope: there is no row or method of this name; known are dpo, rloo",
        ),
        ({"grid": UNEQUAL, "rows": ["dpo"], "kl": 5}, "select.grid.rloo: no selected row reads this grid"),
        ({"grid": {"learning_rate": [1e-3, 1e-3]}, "kl": 5}, "select.grid.learning_rate: expected a list of different"),
        ({"grid": {"learning_rate": [0.001, "1e-3"]}, "kl": 5}, "are one setting; remove one"),
        ({"grid": {"seed": [0, 1]}, "kl": 5}, "select.grid.seed: a grid is of a row's settings"),
        ({"grid": {"learning_rate": [1e-3]}}, "select.kl: reward_at_kl compares at a KL"),
        ({"grid": {"learning_rate": [1e-3]}, "criterion": "win_rate", "kl": 5}, "the criterion win_rate does not read"),
        (
            {"grid": {"max_steps": [4, 8]}, "kl": 5},
            "runs.dpo.checkpoints: their steps depend on the choice of max_steps",
        ),
        ({"grid": {"learning_rate": [1e-3]}, "criterion": "held_out_accuracy"}, "rloo is trained on its own answers"),
        ({"grid": {"learning_rate": [1e-3, -1]}, "kl": 5}, "s.yaml: select.grid.learning_rate: expected a number"),
        (
            {"grid": {"dpo": {"beta": [1, -2.5]}, "rloo": {"kl": [1, 2]}}, "kl": 5},
            "s.yaml: select.grid.dpo.beta: expected",
        ),
        (
            {"grid": {"learning_rate": 1e-4, "x": [1, 2]}, "kl": 5},
            "s.yaml: select.grid.learning_rate: expected a list of ",
        ),
        (
            {"grid": {"learning_rat": [1e-3, 1]}, "kl": 5},
            "s.yaml: select.grid.learning_rat: dpo, rloo do not read it; did you mean `learning_rate`?",
        ),
        ({"grid": {}, "kl": 5}, "select.grid: has no key; "),
        ({"grid": {"beta": [1, 2]}, "kl": 5}, "select.grid.beta: rloo does not read it; "),
        (
            {"grid": {"dpo": {"beta": [1, 2]}, "rloo": {"kl_coef": [1, 2]}}, "kl": 5},
            "s.yaml: select.grid.rloo.kl_coef: rloo does not read it; here it is `kl`, a coefficient, {target",
        ),
        ({"grid": {"learning_rate": "1e-4"}, "kl": 5}, 'expected a list or keys and values, got "1e-4"'),
        ({"grid": {"dpo": {"beta": 1}}, "kl": 5}, "s.yaml: select.grid.dpo.beta: expected a list, got 1"),
        ({**SELECT, "rows": "dpo"}, 's.yaml: select.rows: expected a list, got "dpo"'),
        ({**SELECT, "rows": ["dpo", "dpo"]}, "s.yaml: select.rows: 'dpo' is there twice; remove one"),
        ({**SELECT, "rows": []}, "s.yaml: select.rows: expected a list of at least 1, got []"),
        ({**SELECT, "unequal": "maybe"}, 's.yaml: select.unequal: expected true or false, got "maybe"'),
        ({**SELECT, "grid": True}, "s.yaml: select.grid: expected keys and values, got true"),
    ],
)
def test_mistakes(select: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        suite(select)
    assert message in str(caught.value)
    assert not message.startswith("s.yaml") or "\n" not in str(caught.value), "one mistake is one sentence"


def test_all_mistakes_of_a_search_are_said_at_once() -> None:
    grid = {"dpo": {"learning_rate": [1e-3, 1e-3], "seed": [1, 2]}, "nope": {"beta": [1]}}
    with pytest.raises(UserError) as caught:
        suite({"grid": grid, "kl": 5, "rows": ["dpo", "rloo", "none"]})
    lines = [line.removeprefix("s.yaml: ") for line in str(caught.value).splitlines()]
    assert [line.partition(": ")[0] for line in lines] == [
        "select.rows",
        "select.grid.nope",
        "select.grid.dpo.learning_rate",
        "select.grid.dpo.seed",
        "select.grid",
    ]
    assert lines[-1].startswith("select.grid: no grid for the row rloo")


def test_a_long_name_of_a_candidate_is_a_mistake_of_the_grid() -> None:
    row = {"name": "d" * 60, "method": "dpo"}
    with pytest.raises(UserError, match="select.grid: candidates of d+ have names of more than 80 characters"):
        suite({"grid": {"learning_rate": [1e-3, 2e-3], "warmup_steps": [1, 2]}, "kl": 5}, (row,))


def test_a_section_with_a_mistake_has_no_second_sentence_on_its_checkpoints() -> None:
    section = {**QUICKSTART["preference"], "max_steps": 8, "checkpoints": "many"}
    with pytest.raises(UserError) as caught:
        suite(EARLY, ({"name": "dpo", "method": "dpo"},), preference=section)
    assert "preference.checkpoints: expected a whole number" in str(caught.value)
    assert "saves none" not in str(caught.value)


def test_a_reward_at_a_kl_is_of_answers_at_temperature_1() -> None:
    generate = {**QUICKSTART["generate"], "temperature": 0.5}
    with pytest.raises(UserError, match="select.criterion: reward_at_kl needs answers at temperature 1"):
        suite(generate=generate)
    assert suite({"grid": {"learning_rate": [1e-3]}, "criterion": "win_rate"}, generate=generate).select


def test_unequal_grids_may_be_allowed() -> None:
    assert len(suite({"grid": UNEQUAL, "kl": 5, "unequal": True}).trained) == 5


def test_rounds_implicit_rewards_and_the_name_validation_are_refused() -> None:
    rounds = {"name": "own", "method": "dpo", "beta": 0.1, "pairs": "max_min"}
    with pytest.raises(UserError, match="runs.own: a row with rounds cannot be selected"):
        suite(rows=(rounds,))
    with pytest.raises(UserError, match="score.implicit: `select` chooses the settings of dpo-seed0"):
        suite(score={"reward": "vader", "implicit": ["dpo-seed0"]})
    for name in ("validation", "validation-step4"):
        variants = {name: {"temperature": 0.5}}
        with pytest.raises(UserError, match=f"generate.variants.{name}: `select` answers"):
            suite(generate={"max_new_tokens": 8, "variants": variants})


def test_without_a_search_a_variant_may_have_the_name_of_one() -> None:
    variants = {"validation-step4": {"temperature": 0.5}}
    one = resolve({**QUICKSTART, "generate": {**QUICKSTART["generate"], "variants": variants}}, "s.yaml")
    config = json.loads(jobs.config_of(one, "generate", "sft@validation-step4"))
    assert config["generate"]["temperature"] == 0.5 and config.keys() == {"generate"}


def test_a_suite_without_the_section_has_the_same_jobs_as_before() -> None:
    values = {**QUICKSTART, "runs": [dict(DPO)]}
    one = resolve(values, "s.yaml")
    assert isinstance(one, Suite) and one.trained == list(one.runs)
    assert "select" not in one.model_dump() and not inputs_of(one, "report")["choices"]
    assert not any("validation" in folder or folder.startswith(("choose", "selected")) for folder in jobs_of(one))
