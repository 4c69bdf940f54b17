"""The suite smollm2-safety in its tiniest form: every job of its graph, on random weights and few rows."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from chat_templates import QWEN2, chat
from conftest import ROOT
from prefdag.cli.main import main
from prefdag.config import jobs
from prefdag.config.model import Architectural
from prefdag.config.suite import Suite, read_suite
from prefdag.data.halves import half_of
from prefdag.data.token_store import Store
from prefdag.models.loading import build, save
from prefdag.planning.graph import inputs_of, jobs_of

HARMS = ("Privacy Violation", "Drugs")
SECTIONS = {"private": ["Privacy Violation"], "both": [*HARMS]}
TRAINING = {"batch_size": 4, "max_steps": 2, "learning_rate": 1e-3, "warmup_steps": 0, "tokens_per_batch": 2048}
SIZES = {
    "prepare": {"validation_fraction": 0.2, "test_fraction": 0.3},
    "reward": {
        **TRAINING,
        "precision": "float32",
        "variants": {"batch4": {"batch_size": 2, "max_steps": 4, "warmup_steps": 0}},
    },
    "online": {**TRAINING, "max_new_tokens": 8, "checkpoints": 1},
    "preference": {**TRAINING, "precision": "float32", "checkpoints": 1},
    "generate": {"max_prompts": 6, "max_new_tokens": 8},
    "score": {"bootstrap": 20},
    "judge": {"bootstrap": 20},
    "report": {"compare": ["dpo-beta0.1"], "samples": 2, "matched_kl": [1e-9], "hidden_map": 6},
    "runs": [
        {"name": "dpo-beta0.1", "method": "dpo", "beta": 0.1},
        {"name": "rloo", "method": "rloo", "samples": 2, "kl": 0.05},
    ],
}


def safe_row(number: int) -> dict:
    """A prompt whose harm is one of two, and whose unsafe response is the longer one."""
    unsafe = number % 2
    texts = {f"response_{k}": "Mix these powders. " * 4 if k == unsafe else "Sorry, refusing." for k in (0, 1)}
    safe = {f"is_response_{k}_safe": k != unsafe for k in (0, 1)}
    harm = {
        f"response_{k}_harm_category": {name: k == unsafe and name == HARMS[number % 3 % 2] for name in HARMS}
        for k in (0, 1)
    }
    return {"prompt": f"Question {number}?", **texts, **safe, **harm}


def helpful_row(number: int) -> dict:
    """The first two prompts are those of `safe_row`, of which some are trained on."""
    prompt = f"Question {number}?" if number < 30 else f"Another question {number}?"
    return {"question": prompt, "response_1": "Yes.", "response_2": "No, no, no.", "overall_response": 1 + number % 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, Path]:
    folder = tmp_path_factory.mktemp("smollm2")
    (folder / "data").mkdir()
    for name, row, numbers in (("saferlhf", safe_row, range(40)), ("align-anything", helpful_row, range(20, 44))):
        rows = [row(number) for number in numbers]
        (folder / f"data/{name}.json").write_text(json.dumps(rows))
    vocabulary = chat(QWEN2, ["<|im_start|>", "<|im_end|>"])
    vocabulary.save_pretrained(folder / "tokenizer")
    shape = Architectural(architecture="qwen2", hidden_size=16, layers=1, heads=2, context=1024)
    model = build(shape, len(vocabulary) + 8, vocabulary.bos_token_id, vocabulary.eos_token_id, 0)
    save(model, folder / "tokenizer", folder / "model")
    data = str(folder / "data")
    changes = {
        "model": {"source": str(folder / "model")},
        "data": {"source": data},
        "evaluate_reward": {"align-anything": {"source": data}, "test": {"sections": SECTIONS}},
        **SIZES,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(changes))
    files = [ROOT / "configs/smollm2-safety.yaml", ROOT / "configs/local/smollm2-files.yaml", folder / "tiny.yaml"]
    suite = read_suite([str(path) for path in files])
    assert isinstance(suite, Suite)
    for job in jobs_of(suite):
        run(suite, folder / "results", job)
    return suite, folder / "results"


def run(suite: Suite, results: Path, job: str) -> None:
    """Run one job of the graph in this process, as its rule would."""
    assert main(command_of(suite, results, job)) == 0, job


def command_of(suite: Suite, results: Path, job: str) -> list[str]:
    stage, _, name = job.partition("/")
    command = [stage, "--config", jobs.config_of(suite, stage, name or None)]
    for option, folders in inputs_of(suite, stage, name or None).items():
        if folders:
            command += [f"--{option}", *(f"{results}/{folder}/manifest.json" for folder in folders)]
    return [*command, "--output", f"{results}/{job}/manifest.json"]


def test_the_report_has_every_figure_of_the_reward_model(finished: tuple[Suite, Path]) -> None:
    report = finished[1] / "report"
    figures = {path.stem for path in (report / "figures").glob("*.png")}
    wanted = {"reward_accuracy", "reward_histograms", "reward_boxes", "reward_training", "reward_subsets", "length_gap"}
    wanted |= {"proxy_gold", "hidden_map", "frontier", "league"}
    assert wanted | {"logratios", "implicit_rewards", "displacement", "lengths", "words", "text_map"} <= figures


def test_the_reward_model_is_measured_by_harm_and_by_length(finished: tuple[Suite, Path]) -> None:
    """Every unsafe response is longer, so there is one length class; the harms share the test split."""
    table = pd.read_csv(finished[1] / "evaluate_reward/test/subsets.csv")
    after = table[table["reward"] == "after"].set_index("subset")
    assert [*after.index[:4]] == ["all", "mean of sections", *sorted(SECTIONS)]
    assert sorted(after.index[4:]) == sorted([*HARMS, "chosen shorter"])
    assert after.loc["all", "pairs"] == after.loc[list(HARMS), "pairs"].sum()
    evaluation = json.loads((finished[1] / "reward/evaluation.json").read_text())
    assert after.loc["all", "accuracy"] == pytest.approx(evaluation["after"]["accuracy"])
    assert after.loc["both", "accuracy"] == pytest.approx(after.loc["all", "accuracy"])
    assert after.loc["private", ["accuracy", "pairs"]].tolist() == after.loc[HARMS[0], ["accuracy", "pairs"]].tolist()
    facts = json.loads((finished[1] / "evaluate_reward/test/manifest.json").read_text())["facts"]
    assert facts["mean_of_sections"] == after.loc[["private", "both"], "accuracy"].mean()
    page = (finished[1] / "report/index.html").read_text()
    assert "Reward model by subset" in page and "Privacy Violation" in page and "<td>section private</td>" in page


def test_the_two_reward_models_share_no_training_prompt(finished: tuple[Suite, Path]) -> None:
    suite, results = finished
    configs = {
        name: json.loads((results / f"{folder}/manifest.json").read_text())["config"]["reward"]
        for name, folder in (("reward", "reward"), ("gold", "reward_variant/gold"))
    }
    assert (configs["reward"]["half"], configs["gold"]["half"]) == ("first", "second")
    store = Store.open(results / "prepare/comparisons/train")
    first, second = (set(half_of(store, half).prompts.tolist()) for half in ("first", "second"))
    assert not first & second and first | second == set(store.prompts.tolist())
    assert suite.reward is not None and configs["gold"]["seed"] == 1 and configs["reward"]["seed"] == 0


def test_every_answer_is_scored_by_every_reward_model(finished: tuple[Suite, Path]) -> None:
    """proxy_gold.csv holds the gain over SFT in SFT's deviations, computed here with pandas alone."""
    results = finished[1]
    runs = pd.read_csv(results / "report/runs.csv").set_index("run")
    assert runs[["trained_batch4", "trained_gold"]].notna().all(axis=None)
    table = pd.read_csv(results / "report/proxy_gold.csv").set_index("answers")
    assert {"dpo-beta0.1", "rloo"} <= set(table.index)
    sft, rloo = (pd.read_csv(results / f"score/{name}/scores.csv") for name in ("sft", "rloo"))
    for side, column in (("proxy", "trained"), ("gold", "trained_gold")):
        gain = (rloo[column].mean() - sft[column].mean()) / sft[column].std(ddof=0)
        assert table.loc["rloo", side] == pytest.approx(gain)
    league = pd.read_csv(results / "report/league.csv")
    assert (
        league["gold_at_1e-09"].notna().any()
        and "Policies by reward models" in (results / "report/index.html").read_text()
    )


def test_the_map_has_both_models_and_both_sides(finished: tuple[Suite, Path]) -> None:
    table = pd.read_csv(finished[1] / "hidden_map/map.csv")
    assert table.groupby(["model", "side"]).size().tolist() == [6] * 4 and table[["x", "y"]].notna().all(axis=None)


def test_the_order_under_the_reference_is_that_of_its_log_probs(finished: tuple[Suite, Path]) -> None:
    """Of random weights every token costs about as much, so the longer, unsafe response has the smaller sum."""
    table = pd.read_csv(finished[1] / "evaluate_reward/test/subsets.csv").set_index(["subset", "reward"])
    assert table.loc[("all", "reference"), "accuracy"] == 1.0
    scores = pd.read_csv(finished[1] / "evaluate_reward/test/held_out.csv")
    per_token = scores["reference_chosen"] / scores["tokens_chosen"]
    assert (per_token - scores["reference_mean_chosen"]).abs().max() < 1e-5


def test_prompts_that_were_trained_on_are_left_out(finished: tuple[Suite, Path]) -> None:
    folder = finished[1] / "evaluate_reward/align-anything"
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    assert 0 < facts["trained_on"] <= 10 and facts["trained_on"] + facts["pairs"] == 24


@pytest.mark.parametrize(
    ("job", "change", "sentence"),
    [
        ("fetch/evaluated-align-anything", {"file": "absent*.json"}, "evaluate_reward.align-anything.file: no file "),
        ("fetch/evaluated-align-anything", {"source": "absent"}, "evaluate_reward.align-anything.source: absent"),
        (
            "evaluate_reward/align-anything",
            {"subset": ("harm",)},
            "row 1: no column 'harm'; `subset` may name question",
        ),
        (
            "evaluate_reward/align-anything",
            {"subset": ("overall_response",), "sections": {"one": ("1", "3")}},
            "evaluate_reward.align-anything.sections.one: no comparison is of the subset '3'; they have 1, 2",
        ),
    ],
)
def test_a_set_that_cannot_be_read_is_one_sentence(
    finished: tuple[Suite, Path], tmp_path: Path, capsys: pytest.CaptureFixture, job: str, change: dict, sentence: str
) -> None:
    suite, results = finished
    one = suite.evaluate_reward["align-anything"].model_copy(update=change)
    changed = suite.model_copy(update={"evaluate_reward": {"align-anything": one}})
    command = command_of(changed, results, job)
    command[-1] = str(tmp_path / job / "manifest.json")
    assert main(command) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "evaluate" in line]
    assert len(errors) == 1 and sentence in errors[0], errors
