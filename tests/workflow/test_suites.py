"""The shipped suites: each resolves and plans, and runs to its report on tiny sources of the same shape."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from test_run import planned
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chat_templates import LLAMA3, QWEN2, ZEPHYR, chat
from conftest import ROOT, checkout
from prefdag.cli.main import main
from prefdag.config import jobs
from prefdag.config.model import Architectural
from prefdag.config.suite import Suite, read_suite
from prefdag.data.adapters.registry import ADAPTERS
from prefdag.data.rows import read_rows
from prefdag.data.splits import split_of
from prefdag.models.loading import build, save
from prefdag.planning.graph import inputs_of, stages_of
from prefdag.provenance.manifest import read_manifest
from prefdag.rewards.ground_truth import load_ground_truth
from preparing import byte_tokenizer
from sequence_classifier import tiny_roberta

PAPERS = (
    *("imdb-sentiment", "imdb-scratch", "tldr", "hh", "align-anything", "align-anything-batch4", "zephyr"),
    *("simpo-llama3-instruct", "smollm2-safety"),
)
WORDS = ["this", "film", "is", "a", "good", "bad", "great", "awful", "story", "and", "I", "love", "hate", "it"]
Row = dict[str, Any]


@pytest.mark.parametrize("name", PAPERS)
def test_it_plans(name: str, tmp_path: Path) -> None:
    """Nothing is fetched: a lock comes first, then every run of the suite."""
    project = checkout(tmp_path / "clone")
    planned_jobs = planned(project, f"configs/{name}.yaml")
    suite = read_suite([str(ROOT / f"configs/{name}.yaml")])
    assert isinstance(suite, Suite)
    trainings = {tuple(folder.split("/")) for folder in jobs.trainings(suite)}
    assert trainings | {("lock", ""), ("fetch", "data")} <= planned_jobs
    assert {stage for stage, _ in planned_jobs} - {"lock"} == set(stages_of(suite))
    folder = jobs.classifier_folder(suite)
    of_classifier = {job for job in planned_jobs if job[0] == "classifier" or job == ("fetch", "classifier")}
    assert of_classifier == ({(folder.partition("/")[0], folder.partition("/")[2])} if folder else set())


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_expected_is_of_a_run(name: str) -> None:
    suite = read_suite([str(ROOT / f"configs/{name}.yaml")])
    runs = {run.name.rpartition("-seed")[0] or run.name for run in suite.runs} | {"base", "sft", "reward"}
    assert {entry.run for entry in suite.expected} <= runs and all(entry.source for entry in suite.expected)


def words() -> PreTrainedTokenizerFast:
    """Few words, so that a model of random weights soon comes to an end."""
    vocabulary = {word: number for number, word in enumerate(["<b>", "<e>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="film"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<b>", eos_token="<e>")


def qwen() -> PreTrainedTokenizerFast:
    return chat(QWEN2, ["<|im_start|>", "<|im_end|>"])


def llama3() -> PreTrainedTokenizerFast:
    return chat(LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])


def zephyr() -> PreTrainedTokenizerFast:
    return chat(ZEPHYR, [])


def review(split: str, number: int) -> Row:
    """Every two of a split differ at their end alone; those of two splits begin differently."""
    film, stride = number // 2, 4 if split == "test" else 1 + number // 2 % 3
    words = [WORDS[(film + place * stride) % len(WORDS)] for place in range(10)]
    return {"text": " ".join([*words, WORDS[number % 2]]), "label": number % 2}


def post(split: str, number: int) -> Row:
    info = {"subreddit": "pets", "title": f"{split} {number}", "post": "My cat sleeps."}
    return {"info": info, "summaries": [{"text": "A cat sleeps."}, {"text": "No."}], "choice": number % 2}


def question(split: str, number: int) -> Row:
    texts = {"question": f"{split} {number}?", "response_1": "Yes, surely.", "response_2": "No."}
    return {**texts, "overall_response": 1 + number % 2}


def talk(split: str, number: int) -> Row:
    question = {"role": "user", "content": f"{split} {number}?"}
    sides = {
        side: [question, {"role": "assistant", "content": text}]
        for side, text in (("chosen", "Yes"), ("rejected", "No"))
    }
    return {"prompt": question["content"], **sides}


def dialogue(split: str, number: int) -> Row:
    begin = f"\n\nHuman: {split} {number}?\n\nAssistant:"
    return {"chosen": f"{begin} Yes.", "rejected": f"{begin} No."}


# Suite: architecture, tokenizer, a row, its files of train and test (of imdb-scratch the labelled rows).
TINY: dict[str, tuple[str, Callable[[], PreTrainedTokenizerFast], Callable[[str, int], Row], tuple[str, str]]] = {
    "imdb-sentiment": ("gpt2", words, review, ("plain_text/train-0.parquet", "plain_text/test-0.parquet")),
    "imdb-scratch": ("llama", words, review, ("plain_text/unsupervised-0.parquet", "plain_text/train-0.parquet")),
    "tldr": ("gpt_neox", byte_tokenizer, post, ("comparisons/train/0.parquet", "comparisons/validation/0.parquet")),
    "hh": ("gpt_neox", byte_tokenizer, dialogue, ("harmless/train.jsonl.gz", "harmless/test.jsonl.gz")),
    "align-anything": ("qwen2", qwen, question, ("text-to-text/train_30k.parquet", "text-to-text/val_1k.parquet")),
    "zephyr": ("mistral", zephyr, talk, ("data/train_prefs-0.parquet", "data/test_prefs-0.parquet")),
    "simpo-llama3-instruct": ("llama", llama3, talk, ("data/train-0.parquet", "data/test-0.parquet")),
}
TRAINING = {"batch_size": 4, "max_steps": 2, "learning_rate": 1e-3, "warmup_steps": 0, "tokens_per_batch": 2048}
PRETRAINING = TRAINING | {"max_steps": 40, "epochs": 20, "learning_rate": 1e-2}
SIZES: Row = {
    "prepare": {"validation_fraction": 0.3, "test_fraction": 0.3},  # where no file is
    "preference": {**TRAINING, "checkpoints": 0},
    "reference": {"tokens_per_batch": 2048},
    "generate": {"max_prompts": 4, "max_new_tokens": 8, "batch_size": 8},
    "score": {"bootstrap": 20, "tokens_per_batch": 2048},
    "judge": {"bootstrap": 20},
}


def tiny(name: str, folder: Path) -> Suite:
    """The shipped suite with source, model and sizes replaced by a second config file; nothing else."""
    architecture, tokenizer, row, files = TINY[name]
    for split, file in zip(("train", "test"), files, strict=True):
        rows = [row(split, number) for number in range(32 if split == "train" else 10)]
        path = folder / "rows" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            path.write_bytes(gzip.compress("".join(json.dumps(one) + "\n" for one in rows).encode()))
    suite = f"{ROOT}/configs/{name}.yaml"
    stated = yaml.safe_load(Path(suite).read_text())
    changes: Row = {"data": {"source": str(folder / "rows"), "revision": None}, **SIZES}
    if sources := stated["data"].get("sources"):  # one that is trained on, one of another input distribution
        articles = [{"article": f"The cat {number} slept.", "highlights": "A cat slept."} for number in range(6)]
        (folder / "rows/3.0.0").mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(articles), folder / "rows/3.0.0/test-0.parquet")
        local = {"source": str(folder / "rows"), "revision": None}
        changes["data"] = {"sources": [{**source, **local} for source in sources]}
    changes["model"] = _tiny_model(folder, architecture, tokenizer(), stated["model"])
    if "reward" in stated:
        changes["reward"] = TRAINING
    if "pretrain" in stated:
        changes |= {"pretrain": PRETRAINING, "classifier": {"tfidf": {"min_df": 1, "held_out": 0.5}}}
    if "pairs" in stated:
        changes["pairs"] = {"max_new_tokens": 60, "batch_size": 64}
    if (stated.get("pairs") or {}).get("max_prompts"):
        changes["pairs"]["max_prompts"] = 20
    if (stated.get("classifier") or {}).get("source"):
        changes["classifier"] = {"source": str(tiny_roberta(folder / "classifier", WORDS)), "revision": None}
    rows = stated.get("runs", [])
    if any(run.get("preset") or run.get("method") == "ppo" for run in rows):
        changes["runs"] = [with_small_rounds(run) for run in rows]
        changes["online"] = {
            "batch_size": 4,
            "max_steps": 2,
            "minibatches": 2,
            "tokens_per_batch": 2048,
            "checkpoints": 0,
        }
    if stated["generate"].get("best_of"):
        changes["generate"] = SIZES["generate"] | {"best_of": 2, "best_of_prompts": 2}
    changes["sft"] = TRAINING | ({"max_steps": 0} if stated["sft"].get("max_steps") == 0 else {})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(changes))
    return read_suite([suite, str(folder / "tiny.yaml")])


def with_small_rounds(run: Row) -> Row:
    """A row whose rounds have 4 prompts, where it states their number."""
    small = run | {"batch_size": 4} if "batch_size" in run else run
    return small | {"online": run["online"] | {"batch_size": 4}} if "batch_size" in run.get("online", {}) else small


def _tiny_model(folder: Path, architecture: Any, vocabulary: PreTrainedTokenizerFast, stated: Row) -> Row:
    """A folder of random weights, or the shape of one to be trained."""
    if stated["source"] == "scratch":
        return {"scratch": {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2}}
    vocabulary.save_pretrained(folder / "tokenizer")
    shape = Architectural(architecture=architecture, hidden_size=16, layers=1, heads=2, context=4096)
    # Rows to spare, as most models have: with a config.json, transformers gives Qwen2's tokenizer a token more.
    model = build(shape, len(vocabulary) + 8, vocabulary.bos_token_id, vocabulary.eos_token_id, 0)
    save(model, folder / "tokenizer", folder / "model")
    return {"source": str(folder / "model")}


def walk(suite: Suite, results: Path) -> list[str]:
    """Every stage in the order of the DAG, one run of each method; returns the policies."""

    def made(place: str) -> str:
        return str(results / place / "manifest.json")

    def stage(place: str, name: str | None = None, **inputs: str | list[str] | None) -> None:
        command = [place.partition("/")[0], "--config", jobs.config_of(suite, place.partition("/")[0], name)]
        for key, value in inputs.items():
            if value is not None:
                command += [f"--{key}", *([made(value)] if isinstance(value, str) else map(made, value))]
        assert main([*command, "--output", made(place)]) == 0, place

    rows = [run for run in suite.runs if not run.rounds]  # the chains of rounds have a test of their own
    runs = list({run.objective.method: run.name for run in reversed(rows)}.values())
    base, classifier = jobs.folder_of(suite, "base"), jobs.classifier_folder(suite)
    stage("fetch/data", "data")
    if classifier == "classifier":
        stage(classifier, data="fetch/data")
    elif classifier:
        stage(classifier, "classifier")
    if suite.model.from_scratch:
        stage(base, data="fetch/data")
    else:
        stage(base, "model")
    stage("prepare/demonstrations", "demonstrations", rows="fetch/data", tokenizer=base)
    stage("sft", base=base, demonstrations="prepare/demonstrations")
    if suite.pairs:
        stage("pairs", policy="sft", rows="fetch/data", classifier=classifier)
    rows = {"rows": "pairs" if suite.pairs else "fetch/data", "demonstrations": "prepare/demonstrations"}
    stage("prepare/comparisons", "comparisons", tokenizer=base, **rows)
    both = {"policy": "sft", "comparisons": "prepare/comparisons"}
    reward = "reward" if suite.reward else None
    if reward:
        stage(reward, **both)
    stage("reference/comparisons", **both)
    for run in runs:
        place = jobs.training_folder(suite, run)
        read = inputs_of(suite, place.partition("/")[0], run)
        stage(place, run, **{name: folders[0] for name, folders in read.items() if folders})
    policies = ["base", "sft", *runs]
    inputs: Row = {"reference": "sft", "implicit": [], "reward": reward, "classifier": classifier}
    for policy in policies:
        at = jobs.folder_of(suite, policy)
        stage(f"generate/{policy}", policy=at, comparisons="prepare/comparisons")
        stage(f"score/{policy}", generations=f"generate/{policy}", policy=at, **inputs)
    for policy in ("base", *runs):
        stage(f"judge/{policy}", scores=f"score/{policy}", against="score/sft")
    others = [one for one in jobs.answers(suite) if jobs.prompts_of(suite, one) == "ood"]
    if others:
        stage("prepare/ood", "ood", rows="fetch/data", tokenizer=base, demonstrations="prepare/demonstrations")
    for one in sorted(others, key=lambda one: jobs.against(suite, one) is not None)[:4]:
        name, at = str(one), jobs.answering_folder(suite, one)
        who = {"policy": at} if at else {"tokenizer": base}
        stage(f"generate/{name}", name, comparisons="prepare/ood", **who)
        stage(f"score/{name}", name, generations=f"generate/{name}", policy=at, **inputs)
        if held := jobs.against(suite, one):
            stage(f"judge/{name}", name, scores=f"score/{name}", against=f"score/{held}")
    stage(
        "report",
        scores=[f"score/{policy}" for policy in policies],
        judges=[f"judge/{policy}" for policy in policies if policy != "sft"],
        generations=[f"generate/{policy}" for policy in policies],
        preferences=[jobs.training_folder(suite, run) for run in runs],
        comparisons="prepare/comparisons",
        reward=reward,
    )
    return policies


@pytest.mark.parametrize("name", TINY)
def test_it_runs_to_its_report(name: str, tmp_path: Path) -> None:
    suite = tiny(name, tmp_path)
    policies = walk(suite, tmp_path / "results")
    table = pd.read_csv(tmp_path / "results/report/runs.csv")
    assert sorted(table["run"]) == sorted(policies)
    assert table["reward"].notna().all()
    if suite.classifier:
        _check_classified(suite, tmp_path / "results", policies)
    if suite.prepare.leakage == "unseen":
        _check_unseen(suite, tmp_path / "results")
    figures = {path.stem for path in (tmp_path / "results/report/figures").glob("*.png")}
    assert (suite.reward is not None) == ({"reward_histograms", "reward_boxes"} <= figures)
    page = (tmp_path / "results/report/index.html").read_text()
    assert ("Published results" in page) == bool(suite.expected)
    for entry in suite.expected:
        assert entry.measure in page and f"{entry.value:g}" in page


def _check_unseen(suite: Suite, results: Path) -> None:
    """No test prompt begins a text of pre-training or SFT, and there is one nonetheless."""
    shares = {"validation": suite.prepare.validation_fraction or 0, "test": suite.prepare.test_fraction or 0}
    if suite.data.test:
        shares["test"] = 0
    prompts = {
        row["prompt"]
        for split in ("train", "test")
        for row in (read_rows(results / f"pairs/{split}.jsonl") if (results / f"pairs/{split}.jsonl").is_file() else ())
        if split == "test" or split_of(row["prompt"], 0, shares) == "test"
    }
    comparisons = ADAPTERS[suite.prepare.adapter]
    rows = [comparisons(row) for row in read_rows(results / "fetch/data/train.jsonl")]
    texts = [row.prompt + row.responses[0] for row in rows if split_of(str(row.prompt), 0, shares) == "train"]
    assert prompts and len(texts) < len(rows)
    assert not [prompt for prompt in prompts if any(text.startswith(prompt) for text in texts)]
    facts = read_manifest(results / "prepare/demonstrations/manifest.json").content["facts"]
    assert 0 < facts["train"]["used"] <= len(texts)
    if suite.model.from_scratch:
        assert read_manifest(results / "pretrain/manifest.json").content["facts"]["documents"] == len(texts)


def _check_classified(suite: Suite, results: Path, policies: list[str]) -> None:
    """Headline and labels of the pairs, of no more prompts than asked for, are P(positive) of prompt and response."""
    assert suite.pairs is not None
    scorer = load_ground_truth(
        "classifier", results / f"{jobs.classifier_folder(suite)}/manifest.json", torch.device("cpu")
    )
    for policy in policies:
        rows = list(read_rows(results / f"generate/{policy}/generations.jsonl"))
        table = pd.read_csv(results / f"score/{policy}/scores.csv")
        wanted = scorer([row["prompt"] + row["response"] for row in rows])
        assert np.abs(table["classifier"] - wanted).max() < 1e-6
        assert (table["reward"] == table["classifier"]).all() and table["repetition"].between(0, 1).all()
    question = json.loads((results / "pairs/summary.json").read_text())["train"]["prompts"]
    assert question == (suite.pairs.max_prompts or question)
    pairs = list(read_rows(results / "pairs/train.jsonl"))
    for row in pairs:
        assert np.abs(scorer([row["prompt"] + response for response in row["responses"]]) - row["scores"]).max() < 1e-6
        assert row["scores"][0] > row["scores"][1]
    assert pairs
