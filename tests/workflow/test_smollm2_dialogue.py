"""The suites hh-smollm2 and tldr-smollm2 in their tiniest form: every job, with adapters, on random weights."""

import csv
import gzip
import json
import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_smollm2_suite import run

from chat_templates import QWEN2, chat
from conftest import ROOT
from prefdag.config.model import Architectural
from prefdag.config.suite import Suite, read_suite
from prefdag.models.loading import build, save
from prefdag.planning.graph import jobs_of

TRAINING = {"batch_size": 4, "max_steps": 2, "learning_rate": 1e-3, "warmup_steps": 0, "precision": "float32"}
ROUNDS = {"batch_size": 2, "samples": 2, "max_steps": 1, "max_new_tokens": 8, "precision": "float32"}
SIZES = {
    "prepare": {"max_prompt_tokens": 400, "validation_fraction": 0.2, "test_fraction": 0.4},
    **dict.fromkeys(("sft", "reward", "preference"), TRAINING),
    "online": ROUNDS,
    "generate": {"max_prompts": 5, "max_new_tokens": 8, "best_of": 2, "best_of_prompts": 3},
    "score": {"bootstrap": 20},
    "judge": {"bootstrap": 20},
    "report": {"samples": 2},
}
TRAINED = {"hh": "dpo-beta0.1", "tldr": "dpo-beta0.5"}
HEATS = {"hh": ("t0", "t0.5"), "tldr": ("t0.5", "t1.0")}
FILES = {"hh": "hh.jsonl.gz", "tldr": "tldr/judged.csv"}
NUMBER = 30


def write_dialogues(path: Path) -> None:
    rows = []
    for number in range(NUMBER):
        begin = f"\n\nHuman: Question {number}?\n\nAssistant: Which one?\n\nHuman: That one.\n\nAssistant:"
        rows.append({"chosen": f"{begin} No, sorry.", "rejected": f"{begin} Yes, mix them."})
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_judged(path: Path) -> None:
    """Every third row is not judged; of the others the judge prefers each writer equally often in each place."""
    columns = ("query", "postprocessed_response", "reference_responses", "preferred", "shuffled_index")
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for number in range(3 * NUMBER // 2):
            preferred = ("ours", "reference")[number // 3 % 2] if number % 3 else ""
            post = f"SUBREDDIT: r/pets\n\nTITLE: Cat {number}\n\nPOST: My cat\nsleeps.\n\nTL;DR:"
            writer.writerow([post, "My cat sleeps all day.", "Cat sleeps.", preferred, number % 3 - 1])


@pytest.fixture(scope="module", params=FILES)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, Path]:
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    rows = folder / "data" / FILES[name]
    rows.parent.mkdir(parents=True)
    (write_dialogues if name == "hh" else write_judged)(rows)
    vocabulary = chat(QWEN2, ["<|im_start|>", "<|im_end|>"])
    vocabulary.save_pretrained(folder / "tokenizer")
    shape = Architectural(architecture="llama", hidden_size=16, layers=1, heads=2, context=1024)
    model = build(shape, len(vocabulary) + 8, vocabulary.bos_token_id, vocabulary.eos_token_id, 0)
    save(model, folder / "tokenizer", folder / "model")
    source = {"source": str(rows.parent), "train": rows.name}
    changes = {
        "model": {"source": str(folder / "model")},
        "data": source if name == "hh" else {"sources": [{**source, "weight": 1}]},
        **SIZES,
    }
    tiny = folder / "tiny.yaml"
    tiny.write_text(yaml.safe_dump(changes))
    suite = read_suite([f"{ROOT}/configs/{name}.yaml", f"{ROOT}/configs/local/{name}-smollm2.yaml", str(tiny)])
    assert isinstance(suite, Suite)
    for job in jobs_of(suite):
        run(suite, folder / "results", job)
    return suite, folder / "results"


def kind(finished: tuple[Suite, Path]) -> str:
    return finished[0].name.partition("-")[0]


def test_every_training_is_of_an_adapter_alone(finished: tuple[Suite, Path]) -> None:
    """DPO's first loss is ln 2: its reference is the policy that the adapter is added to."""
    results, dpo = finished[1], TRAINED[kind(finished)]
    models = [results / folder / "model" for folder in ("sft", "reward", f"preference/{dpo}", "policy/rloo")]
    assert [path for path in models if not (path / "adapter_model.safetensors").is_file()] == []
    first = pd.read_csv(results / f"preference/{dpo}/curves.csv")["loss"][0]
    assert first == pytest.approx(math.log(2), abs=1e-6)


def test_win_rates_are_over_temperature_and_against_the_chosen_responses(finished: tuple[Suite, Path]) -> None:
    name, results = kind(finished), finished[1]
    policies = ("sft", TRAINED[name], "rloo")
    standard = {"base", *policies}
    sets = standard | {f"{policy}@{heat}" for policy in policies for heat in HEATS[name]}
    assert {path.name for path in (results / "judge").iterdir()} == sets
    for one in sets:
        summary = json.loads((results / f"judge/{one}/summary.json").read_text())
        assert summary["held_against"] == "chosen" and summary["n"] == 5, one
    table = pd.read_csv(results / "best_of_n/best_of_n.csv")
    assert set(table["n"]) == {1, 2}
    assert "Best-of" in (results / "report/index.html").read_text()


def test_the_reward_model_is_measured_on_the_held_out_labels(finished: tuple[Suite, Path]) -> None:
    """By length; of judged summaries also by the writer that the judge prefers, and by the order that it saw."""
    table = pd.read_csv(finished[1] / "evaluate_reward/test/subsets.csv")
    after = table[table["reward"] == "after"].set_index("subset")
    assert {"before", "after", "reference"} <= set(table["reward"])
    assert {"all"} < set(after.index) and (after["kind"] == "length").any()
    labels = after[after["kind"] == "subset"]["pairs"]
    if kind(finished) == "hh":
        assert labels.empty
    else:
        orders = ["shuffled_index 0", "shuffled_index 1"]
        assert sorted(labels.index) == ["ours", "reference", *orders]
        assert labels["ours"] + labels["reference"] == labels[orders].sum() == after.loc["all", "pairs"]
