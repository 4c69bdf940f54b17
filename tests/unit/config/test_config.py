"""Suites: every mistake is one sentence; grids, seeds and files are resolved as they say."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import MINI, ROOT
from prefdag.cli.schema import table
from prefdag.config import jobs
from prefdag.config.loading import merge
from prefdag.config.objectives import OBJECTIVES, ON_POLICY
from prefdag.config.online.methods import METHODS
from prefdag.config.suite import Suite, read_suite, resolve
from prefdag.errors import UserError
from prefdag.familiar_keys import FAMILIAR, LEFT_OUT
from prefdag.mistakes import models_in
from prefdag.schema import Section


def suite(**changes: Any) -> dict[str, Any]:
    return merge(yaml.safe_load(MINI), changes)


def mistake(**changes: Any) -> str:
    with pytest.raises(UserError) as result:
        resolve(suite(**changes), "configs/x.yaml")
    return str(result.value)


def sections_of(model: type[Section]) -> Iterator[type[Section]]:
    yield model
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            yield from sections_of(inner)


SECTIONS = [*sections_of(Suite), *OBJECTIVES.values(), *METHODS.values()]
ROW = {"name": "a", "method": "dpo", "beta": 0.1}
MISTAKES = [
    ({"sft": {"lr": 1}}, "configs/x.yaml: sft.lr: unknown key; here it is `learning_rate`"),
    ({"sft": {"batch_size": "many"}}, 'configs/x.yaml: sft.batch_size: expected a whole number, got "many"'),
    ({"sft": {"batch_size": 0}}, "configs/x.yaml: sft.batch_size: expected a number of at least 1, got 0"),
    ({"sft": {"batch_size": True}}, "configs/x.yaml: sft.batch_size: expected a whole number, got true"),
    ({"report": {"hidden_map": True}}, "configs/x.yaml: report.hidden_map: expected a whole number, got true"),
    ({"report": {"matched_kl": [True]}}, "configs/x.yaml: report.matched_kl.0: expected a finite number, got true"),
    (
        {"report": {"matched_kl": [1, 2, 2.0]}},
        "configs/x.yaml: report.matched_kl: 2 is there twice; state each KL once",
    ),
    ({"reward": {"seeds": [0, True]}}, "configs/x.yaml: reward.seeds.1: expected a whole number, got true"),
    (
        {"evaluate_reward": {"rewardbench": {"subset": "subset", "sections": {"chat": {"easy": True}}}}},
        "configs/x.yaml: evaluate_reward.rewardbench.sections.chat.easy: expected a finite number, got true",
    ),
    ({"sft": {"learning_rate": -1}}, "configs/x.yaml: sft.learning_rate: expected a number above 0, got -1"),
    ({"sft": {"learning_rate": ".inf"}}, 'configs/x.yaml: sft.learning_rate: expected a finite number, got ".inf"'),
    (
        {"sft": {"schedule": "up"}},
        "configs/x.yaml: sft.schedule: expected one of 'cosine', 'linear' or 'constant', got \"up\"",
    ),
    ({"runs": [{**ROW, "beta": -1}]}, "configs/x.yaml: runs.a.beta: expected a number above 0, got -1"),
    (
        {"runs": [ROW, {**ROW, "beta": -1}]},
        "configs/x.yaml: runs.a.beta: expected a number above 0, got -1\n"
        "configs/x.yaml: runs.a: duplicate run name; run names must be unique",
    ),
    (
        {"runs": [{**ROW, "beta": -1, "seeds": [0, 1]}, {**ROW, "name": "a-seed1"}]},
        "configs/x.yaml: runs.a.beta: expected a number above 0, got -1\n"
        "configs/x.yaml: runs.a-seed1: duplicate run name; run names must be unique",
    ),
    ({"runs": [ROW, ROW]}, "configs/x.yaml: runs.a: duplicate run name; run names must be unique"),
    ({"runs": [{**ROW, "gamma": 1}]}, "configs/x.yaml: runs.a.gamma: dpo does not read gamma; its options are beta"),
    (
        {"runs": [{"name": "a", "method": "ipo"}]},
        "configs/x.yaml: runs.a.logprob: missing; this key has no default and must be stated",
    ),
    (
        {"runs": [ROW, {**ROW, "name": "A"}]},
        "configs/x.yaml: runs.A: differs from `a` in case only, and some file systems ignore case; rename one of them",
    ),
    ({"runs": [{**ROW, "name": "SFT"}]}, "configs/x.yaml: runs.SFT: this name is reserved; choose another"),
    *(
        (change, f"configs/x.yaml: {key}: `~` is not expanded, got '~/x'; write the path without it")
        for key, change in {
            "extends": {"extends": "~/x"},
            "lock": {"lock": "~/x"},
            "model.source": {"model": {"source": "~/x"}},
            "model.tokenizer": {"model": {"tokenizer": "~/x"}},
            "data.source": {"data": {"source": "~/x"}},
            "data.sources.0.source": {"data": {"source": "mixed", "sources": [{"source": "~/x"}]}},
            "data.test": {"data": {"test": "~/x"}},
            "prepare.template": {"prepare": {"template": "~/x"}},
            "prepare.adapter": {"prepare": {"adapter": "~/x"}},
            "classifier.source": {"classifier": {"source": "~/x"}},
            "judge.judges.0.prompt": {"judge": {"judges": [{"prompt": "~/x"}]}},
            "judge.judges.0.people": {"judge": {"judges": [{"people": "~/x"}]}},
            "runs.0.method": {"runs": [{"name": "a", "method": "~/x"}]},
        }.items()
    ),
    (
        {"runs": [{**ROW, "name": "sft"}]},
        "configs/x.yaml: runs.sft: this name is reserved; choose another",
    ),
    ({"runs": [{**ROW, "learning_rate": 0}]}, "configs/x.yaml: runs.a.learning_rate: expected a number above 0, got 0"),
    (
        {"runs": [{**ROW, "seeds": [1, 1]}]},
        "configs/x.yaml: runs.a.seeds: expected a list of different whole numbers, got [1, 1]",
    ),
    (
        {"preference": {"batch_size": -2}},
        "configs/x.yaml: preference.batch_size: expected a number of at least 1, got -2",
    ),
    ({"nonsense": 1}, "configs/x.yaml: nonsense: unknown key; remove it or correct its spelling"),
]


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES)
def test_a_mistake_is_a_sentence(changes: dict[str, Any], sentence: str):
    assert mistake(**changes) == sentence


def test_a_row_without_a_name_is_named_by_its_number():
    unnamed = {key: value for key, value in ROW.items() if key != "name"}
    sentence = "configs/x.yaml: runs: row {}: has no name; state one, such as `name: dpo`"
    assert mistake(runs=[{**ROW, "name": "a"}, unnamed]) == sentence.format(2)
    both = mistake(runs=[{**unnamed, "name": ""}, {**ROW, "name": "a"}, {**unnamed, "name": None}])
    assert both.split("\n") == [sentence.format(1), sentence.format(3)]


def test_an_unknown_method_names_the_known_ones():
    assert mistake(runs=[{"name": "a", "method": "dop"}]) == (
        "configs/x.yaml: runs.a.method: there is no loss 'dop', did you mean `dpo`?; the losses are "
        f"{', '.join(sorted(OBJECTIVES))}; the on-policy methods are {', '.join(ON_POLICY)}"
    )


@pytest.mark.parametrize(
    "name", ["a; rm -rf x", "../x", "a b", "ä", "", "a/b", "$(x)", "a'b", ".hidden", "x" * 81, "a..b"]
)
def test_names_that_could_hurt_are_refused(name: str):
    if name:
        assert mistake(runs=[{**ROW, "name": name}]).startswith("configs/x.yaml: runs.name: expected letters, digits")
    assert mistake(name=name).startswith("configs/x.yaml: name: expected letters, digits")


def test_a_missing_section_is_named():
    values = suite()
    del values["model"]
    with pytest.raises(UserError, match=r"configs/x.yaml: model: missing"):
        resolve(values, "configs/x.yaml")


def test_every_mistake_is_said_at_once_each_on_a_line():
    changes = {
        "sft": {"epochs": -1, "per_device_train_batch_size": 4, "learning_rat": 1e-5},
        "preference": {"bf16": True},
        "prepare": {"max_length": 512, "bos": "maybe"},
        "learning_rate": 1e-5,
        "refrence": {},
        "runs": [{"name": "a", "method": "dop"}, {"name": "b", "method": "ipo", "logprb": "sum", "lr": 1}],
    }
    lines = [line.removeprefix("configs/x.yaml: ") for line in mistake(**changes).split("\n")]
    assert sorted(line.partition("; the losses are ")[0] for line in lines) == [
        "learning_rate: unknown key; it belongs in `pretrain` or `sft` or `reward` or `preference` or `online`",
        "preference.bf16: unknown key; here it is `precision`: bfloat16; weights stay in float32",
        "prepare.bos: expected one of True, False or 'auto', got \"maybe\"",
        "prepare.max_length: unknown key; here it is `prepare.max_prompt_tokens` and `prepare.max_response_tokens`",
        "refrence: unknown key; did you mean `reference`?",
        "runs.a.method: there is no loss 'dop', did you mean `dpo`?",
        "runs.b.logprb: ipo does not read logprb; its options are beta, logprob; did you mean `logprob`?",
        "runs.b.lr: ipo does not read lr; its options are beta, logprob; here it is `learning_rate`",
        "sft.epochs: expected a number above 0, got -1",
        "sft.learning_rat: unknown key; did you mean `learning_rate`?",
        "sft.per_device_train_batch_size: unknown key; here it is `batch_size`, the comparisons of one optimizer step "
        "over all devices",
    ]


def test_a_wrong_row_hides_no_other_mistake():
    """Neither in the row itself, of any kind, nor in how sections fit together; one sentence for all seeds."""
    runs = [
        {"name": "a", "method": "dop", "batch_size": 0, "dataset": "none"},
        {"name": "b", "method": "rloo", "sampels": 4, "batch_size": 0, "seeds": [0, 1]},
        {"name": "c", "method": "ppo", "kl": -1, "seeds": 3},
        {"name": "d", "method": "dpo", "betta": 1, "batch_size": 0, "online": {"labels": "none"}, "seeds": []},
    ]
    lines = mistake(runs=runs, report={"gold": "none"}).split("\n")
    assert [line.removeprefix("configs/x.yaml: ").partition(": ")[0] for line in lines] == [
        *("runs.a.method", "runs.a.dataset", "runs.a.batch_size", "runs.b.sampels", "runs.b.batch_size"),
        *("runs.c.seeds", "runs.c.kl.coefficient"),
        *("runs.d.seeds", "runs.d.betta", "runs.d.batch_size", "runs.d.labels", "report.gold"),
    ]


def test_a_wrong_row_is_not_said_to_be_absent():
    """The row that `score.implicit` names is there, with a mistake of its own."""
    line = mistake(runs=[{"name": "a", "method": "dpo", "betta": 1}], score={"reward": "vader", "implicit": ["a"]})
    assert line.startswith("configs/x.yaml: runs.a.betta: dpo does not read betta") and "\n" not in line


def test_a_misspelt_section_is_not_missing_as_well():
    values = suite()
    values["modle"] = values.pop("model")
    with pytest.raises(UserError) as result:
        resolve(values, "configs/x.yaml")
    assert str(result.value) == "configs/x.yaml: modle: unknown key; did you mean `model`?"


@pytest.mark.parametrize("key", sorted(FAMILIAR))
def test_the_key_that_a_familiar_one_is_answered_with_exists(key: str):
    fields = {name for model in SECTIONS for name in model.model_fields}
    if FAMILIAR[key].startswith(LEFT_OUT):
        return
    named = re.findall(r"`([\w.]+)`", FAMILIAR[key])
    assert named
    assert {part for name in named for part in name.split(".")} <= fields | {"runs", "prefdag"}


MINIMAL = {"name": "x", "model": {"source": "m"}, "data": {"source": "rows.jsonl"}, "runs": [ROW]}


def test_a_minimal_suite_has_a_default_for_everything_else():
    result = resolve(MINIMAL, "x.yaml")
    assert (result.score.reward, result.reward is not None, result.prepare.adapter) == ("trained", True, "pairs")
    assert (result.prepare.template, result.prepare.bos, result.prepare.end_of_turn) == ("auto", "auto", "auto")
    assert (result.prepare.validation_fraction, result.prepare.test_fraction) == (None, None)
    assert resolve({**MINIMAL, "seed": 7}, "x.yaml").reference.seed == 7
    assert resolve({**MINIMAL, "sft": None}, "x.yaml").sft.batch_size == 16, "an empty section has its defaults"


def test_defaults_follow_from_other_sections():
    world = {**suite(), "score": {}, "prepare": {}, "reward": None}
    result = resolve(world, "x.yaml")
    assert (result.score.reward, result.prepare.adapter, result.prepare.template) == ("vader", "world", "continuation")
    sampled = resolve({**MINIMAL, "pairs": {}, "score": {"reward": "vader"}}, "x.yaml")
    assert sampled.reward is None


def test_numbers_that_yaml_reads_as_text():
    """YAML 1.1 takes 5e-7 for text."""
    assert yaml.safe_load("5e-7") == "5e-7"
    assert resolve(suite(sft={"learning_rate": "5e-7"}), "x").sft.learning_rate == 5e-7


def test_a_key_written_twice_is_refused(tmp_path: Path):
    path = tmp_path / "twice.yaml"
    path.write_text(MINI + "threads: 2\n")
    with pytest.raises(UserError, match="duplicate key 'threads'"):
        read_suite([str(path)])


def test_a_target_among_the_suite_files(tmp_path: Path):
    with pytest.raises(UserError, match="manifest.json: no such suite file; a target of Snakemake's comes before"):
        read_suite([str(tmp_path / "report/manifest.json")])


def test_a_missing_file_and_broken_yaml(tmp_path: Path):
    with pytest.raises(UserError, match="no such suite file"):
        read_suite([str(tmp_path / "none.yaml")])
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        read_suite([str(tmp_path / "broken.yaml")])


BROKEN = {
    "name: x\nmodel:\n  source: a\n   revision: b\n": "line 4, column 12: not valid YAML: mapping values are not "
    "allowed here; check the indentation of this line and of the one above",
    "name: x\n\tmodel: y\n": "line 2, column 1: not valid YAML: found character '\\t' that cannot start any token; "
    "indent with spaces, not with tabs",
    "name: x\nd: 2024-13-45\n": "not valid YAML: month must be in 1..12",
    "1: a\n": "expected text as a key, got 1; put it in quotes",
    "a: {null: b}\n": "expected text as a key, got None; put it in quotes",
    "a: &x\n  b: *x\n": "holds more than 100,000 values; an alias (`*name`) repeats itself",
    "a: &a [1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c]\n"
    "e: &e [*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e]\n": "holds more than 100,000 values; an alias (`*name`) "
    "repeats itself",
    "a: " + "[" * 3000: "not valid YAML: nested too deeply",
    "- a\n": "expected sections such as `name: mine` and `model: ...`, got a list",
}


@pytest.mark.parametrize("text", BROKEN)
def test_yaml_that_is_none_is_a_sentence_with_its_line(tmp_path: Path, text: str):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as result:
        read_suite([str(path)])
    assert str(result.value) == f"{path}: {BROKEN[text]}"


def test_a_folder_is_no_suite(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\); name the YAML file of a suite"):
        read_suite([str(tmp_path)])


def test_grid_and_seeds_are_expanded_into_named_rows():
    result = resolve(suite(runs=None, grid=[{"method": "dpo", "beta": [1, 0.1], "seeds": [0, 3]}]), "x").runs
    assert [run.name for run in result] == [
        "dpo-beta1-seed0",
        "dpo-beta1-seed3",
        "dpo-beta0.1-seed0",
        "dpo-beta0.1-seed3",
    ]
    assert [run.preference.seed for run in result] == [0, 3, 0, 3]
    assert result[2].objective.parameters() == {"beta": 0.1}


def test_a_row_overrides_the_shared_training():
    result = resolve(suite(runs=[{**ROW, "epochs": 3}]), "x").runs[0]
    assert (result.preference.epochs, result.preference.batch_size) == (3, 2)


def test_a_suite_extends_another(tmp_path: Path):
    (tmp_path / "below.yaml").write_text(MINI)
    (tmp_path / "above.yaml").write_text("extends: below.yaml\nname: above\nsft: {max_steps: 3}\n")
    result = read_suite([str(tmp_path / "above.yaml")])
    assert (result.name, result.sft.max_steps, result.sft.batch_size) == ("above", 3, 16)


def test_the_suites_seed_reaches_every_section_that_does_not_state_its_own():
    result = resolve(suite(seed=7, sft={"seed": 2}), "x")
    assert (result.sft.seed, result.pretrain.seed, result.runs[0].preference.seed) == (2, 7, 7)


def test_a_jobs_config_is_canonical_and_holds_its_own_keys_only():
    result = resolve(suite(), "x")
    config = jobs.config_of(result, "preference", "dpo")
    assert set(json.loads(config)) == {"preference", "objective"}
    assert config == json.dumps(json.loads(config), sort_keys=True, separators=(",", ":"))
    changed = resolve(suite(sft={"max_steps": 11}), "x")
    differing = [
        s
        for s in ("pretrain", "sft", "pairs", "reward", "reference")
        if jobs.config_of(result, s) != jobs.config_of(changed, s)
    ]
    assert differing == ["sft"]


@pytest.mark.parametrize("path", sorted(str(path) for path in (ROOT / "configs").glob("*.yaml")))
def test_every_shipped_suite_resolves(path: str):
    assert read_suite([path]).runs


@pytest.mark.parametrize("path", sorted(str(path) for path in (ROOT / "configs/local").glob("hh-*.yaml")))
def test_every_local_file_fits_over_its_suite(path: str):
    result = read_suite([str(ROOT / "configs/hh.yaml"), path])
    assert not result.data.source.startswith("hub:")
    assert not result.model.source.startswith("hub:")


REWARDS = "configs/x.yaml: reward"
REWARD_MISTAKES = [
    (
        {"loss": "plackett_luce", "margin": "scores"},
        f"{REWARDS}.margin: the loss plackett_luce does not read it; take ",
    ),
    ({"loss": "plackett_luce", "label_smoothing": 0.1}, f"{REWARDS}.label_smoothing: the loss plackett_luce does not"),
    ({"label_smoothing": 0.6}, f"{REWARDS}.label_smoothing: expected a number of at most 0.5, got 0.6"),
    ({"centring": "each"}, f"{REWARDS}.centring_coefficient: missing; centring `each` needs its weight, such as 0.01"),
    ({"centring_coefficient": 0.1}, f"{REWARDS}.centring_coefficient: read only with centring `pair_sum` or `each`;"),
    ({"combine": "minimum"}, f"{REWARDS}.combine: there is one head, so `minimum` is not read; state several heads"),
    ({"combine": "minimum", "seeds": [3]}, f"{REWARDS}.combine: there is one head, so `minimum` is not read"),
    ({"heads": 2, "head_std": 0}, f"{REWARDS}.head_std: 0 starts every head equal, so they stay equal; state a "),
    ({"seeds": [1, 1]}, f"{REWARDS}.seeds: expected different whole numbers, got [1, 1]"),
    ({"length_normalisation": -1}, f"{REWARDS}.length_normalisation: expected a number of at least 0, got -1"),
]


@pytest.mark.parametrize(("options", "sentence"), REWARD_MISTAKES, ids=[text for _, text in REWARD_MISTAKES])
def test_options_of_the_reward_model_that_do_not_go_together(options: dict[str, Any], sentence: str):
    assert mistake(reward=options).startswith(sentence)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent", "score.implicit: there is no run 'absent'; the runs are dpo, dpo-strong, simpo"),
        (
            "simpo",
            "score.implicit: simpo (simpo) has no implicit reward; its loss must read the reference and have one",
        ),
    ],
)
def test_an_implicit_reward_needs_a_run_that_has_one(name: str, sentence: str):
    assert mistake(score={"implicit": [name]}).startswith(f"configs/x.yaml: {sentence}")


def test_the_table_of_keys_is_the_models():
    """`prefdag schema --table > configs/README.md` after a change of any section."""
    assert (ROOT / "configs/README.md").read_text() == table()


def test_mistakes_of_rows_are_named_with_those_of_their_section() -> None:
    values = {**MINIMAL, "preference": {"learning_rate": -1, "save_steps": 5}}
    values["runs"] = [{"name": "a", "method": "dqo"}, {"name": "b", "method": "dpo", "beta": -1}]
    with pytest.raises(UserError) as mistake:
        resolve(values, "suite.yaml")
    sentences = str(mistake.value).splitlines()
    assert len(sentences) == 4
    assert any("save_steps: unknown key; here it is `preference.checkpoints`" in one for one in sentences)


def test_options_of_other_on_policy_trainers_are_answered() -> None:
    rows = [{"name": "a", "method": "gppo"}, {"name": "b", "method": "grpo", "num_generations": 4, "cliprange": 0.2}]
    with pytest.raises(UserError) as mistake:
        resolve({**MINIMAL, "runs": rows}, "suite.yaml")
    unknown, generations, clip = str(mistake.value).splitlines()
    assert "did you mean `ppo`?" in unknown and "the on-policy methods are dr_grpo, grpo, ppo" in unknown
    assert "here it is `samples`" in generations and "here it is `clip`" in clip


def test_the_names_of_on_policy_methods_are_those_of_the_registry() -> None:

    assert sorted(METHODS) == sorted(ON_POLICY)


def test_a_suite_extends_one_that_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**MINIMAL, "seed": 1, "threads": 2}))
    (tmp_path / "middle.yaml").write_text("extends: base.yaml\nseed: 5\n")
    (tmp_path / "top.yaml").write_text("extends: middle.yaml\nname: top\n")
    result = read_suite([str(tmp_path / "top.yaml")])
    assert (result.name, result.seed, result.sft.threads) == ("top", 5, 2)
    (tmp_path / "base.yaml").write_text("extends: top.yaml\n")
    with pytest.raises(UserError, match="middle.yaml is extended already; a suite cannot extend itself"):
        read_suite([str(tmp_path / "top.yaml")])


def test_keys_of_peft_are_answered_wherever_they_are_stated() -> None:
    rows = [
        {"name": "a", "method": "dpo", "lora_r": 8, "adapter": {"lora_dropout": 0.1}},
        {"name": "b", "method": "rloo", "target_modules": ["q_proj"]},
    ]
    with pytest.raises(UserError) as mistake:
        resolve({**MINIMAL, "sft": {"lora_rank": 8}, "preference": {"adapter": {"r": 8}}, "runs": rows}, "x.yaml")
    answers = dict(line.removeprefix("x.yaml: ").split(": ", 1) for line in str(mistake.value).splitlines())
    meant = {key: re.findall(r"here it is `([\w.]+)`", answer) for key, answer in answers.items()}
    assert meant == {
        "preference.adapter.r": ["adapter.rank"],
        "runs.a.lora_r": ["adapter.rank"],
        "runs.a.adapter.lora_dropout": ["adapter.dropout"],
        "runs.b.target_modules": ["adapter.target"],
        "sft.lora_rank": ["adapter.rank"],
    }


WHOLE_ROW = {"{} has no population loss to minimise: {}; leave the row out"}


def test_a_check_of_a_section_names_the_key_first() -> None:
    """Then its place is `section.key` in every message, as in those of values; a check of a whole row names the row."""
    checks = [
        function
        for path in (ROOT / "workflow/prefdag/config").rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        and any("model_validator" in ast.unparse(decorator) for decorator in function.decorator_list)
    ]
    messages = []
    for one in (one for check in checks for one in ast.walk(check) if isinstance(one, ast.Raise)):
        assert isinstance(one.exc, ast.Call)
        text = one.exc.args[0]
        parts = text.values if isinstance(text, ast.JoinedStr) else [text]
        messages.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts))
    assert len(messages) > 40
    assert [
        text for text in messages if not re.match(r"[\w.{}]+: |expected |{}$", text) and text not in WHOLE_ROW
    ] == []


def test_a_check_of_a_section_is_placed_at_its_key() -> None:
    row = {**ROW, "warmup_ratio": 0.1, "warmup_steps": 3, "adapter": {"rank": 0}}
    changes = {
        "reward": {"variants": {"wide": {"combine": "minimum", "batch_size": -1}, "one": {"combine": "minimum"}}}
    }
    lines = mistake(**changes, sft={"checkpoints": 1, "processes": 3, "nodes": 2}, runs=[row]).splitlines()
    assert [line.removeprefix("configs/x.yaml: ").partition(": ")[0] for line in lines] == [
        "runs.a.adapter.rank",
        "sft.checkpoints",
        "reward.variants.wide.batch_size",
    ]
    lines = mistake(sft={"processes": 3, "nodes": 2}, reward={"variants": {"one": {"combine": "minimum"}}}).splitlines()
    assert [line.removeprefix("configs/x.yaml: ").partition(": ")[0] for line in lines] == [
        "sft.processes",
        "reward.variants.one.combine",
    ]


def test_what_sections_and_rows_lack_is_said_at_once() -> None:
    """One sentence for the seeds of a row."""
    rows = [
        {"name": "a", "method": "ppo", "reward": "implicit:none", "seeds": [0, 1]},
        {"name": "b", "method": "ppo", "value_from": "reward", "reward": "trained"},
        {"name": "c", "method": "rebel"},
    ]
    changes = {"reward": None, "score": {"reward": "vader", "implicit": ["none"]}, "report": {"gold": "none"}}
    variants = {"far": {"policies": ["none"], "temperature": 0}}
    lines = mistake(**changes, generate={"variants": variants}, evaluate_reward={"x": {}}, runs=rows).splitlines()
    assert sorted(line.removeprefix("configs/x.yaml: ").partition(": ")[0] for line in lines) == [
        "evaluate_reward",
        "generate.variants.far.policies",
        "report.gold",
        "runs.a-seed0.reward",
        "runs.b.reward",
        "runs.b.value_from",
        "score.implicit",
    ]
