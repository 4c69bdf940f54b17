"""An exported reward model scores as the stage did: alone, in padded batches, from text, with its offset stated."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_exported_policy import CHAT, TEXTS, Case, evaluate, messages_of, talk
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from chat_templates import CHATML, chat
from prefdag.cli.main import main
from prefdag.data.token_store import Store
from prefdag.provenance.manifest import MANIFEST, read_manifest
from preparing import byte_tokenizer

CASES = {
    "chat": lambda: Case({"template": "chat", "bos": True}, chat(CHATML, CHAT), list(map(talk, TEXTS)), "<|im_end|>"),
    "plain": lambda: Case({"template": "plain", "bos": True}, byte_tokenizer("<|end|>"), TEXTS, "<|end|>"),
    "no other special token": lambda: Case({"template": "tldr", "bos": False}, single(), TEXTS, "<e>"),
}


def single() -> Any:
    """A tokenizer whose only special token ends responses, as GPT-2's."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


def train(case: Case, root: Path, **settings: Any) -> Path:
    """Train a reward model on the case's rows by the stage's command; return its folder."""
    evaluate(case, root)
    suite = root / "results/toy"
    config = {"batch_size": 2, "max_steps": 3, "learning_rate": 0.01, "normalise": "train", **settings}
    output = suite / "reward" / MANIFEST
    inputs = ("--policy", suite / "sft" / MANIFEST, "--comparisons", suite / "prepare/comparisons" / MANIFEST)
    assert main(["reward", "--config", json.dumps({"reward": config}), *map(str, inputs), "--output", str(output)]) == 0
    return output.parent


def held_out(folder: Path) -> list[float]:
    rows = list(csv.DictReader((folder / "held_out.csv").open()))
    return [float(row[f"after_{place}"]) for row in rows for place in ("chosen", "rejected")]


def scored(folder: Path, rows: list[list[int]]) -> torch.Tensor:
    """Return the logits of one padded batch of rows, [N, heads]."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    assert batch["attention_mask"].sum() < batch["attention_mask"].numel(), "the rows are of different lengths"
    with torch.no_grad():
        values = model(**batch).logits
        alone = torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])
    torch.testing.assert_close(values, alone, rtol=0, atol=2e-5)
    return values


@pytest.mark.parametrize("name", CASES)
def test_padded_batches_equal_the_stage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case = CASES[name]()
    reward = train(case, tmp_path)
    assert main(["export", "reward", "--to", "out"]) == 0
    store = Store.open(tmp_path / "results/toy/prepare/comparisons/test")
    rows = [[*one.prompt.tolist(), *ids.tolist()] for one in map(store.__getitem__, range(4)) for ids in one.responses]
    (offset,) = json.loads(Path("out/scoring.json").read_text())["offset"]
    values = scored(Path("out"), rows)[:, 0] - offset
    torch.testing.assert_close(values, torch.tensor(held_out(reward)), rtol=0, atol=2e-5)
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert tokenizer.pad_token_id != tokenizer.convert_tokens_to_ids(case.end)
    card = Path("out/README.md").read_text()
    assert f"Subtract {offset:.9g}" in card and "accuracy" in card
    assert not Path("out/generation_config.json").exists(), "it generates nothing"
    dialogues = [
        [*messages_of(prompt), {"role": "assistant", "content": text}]
        for prompt in case.prompts
        for text in (" Yes so it is", " No")
    ]
    texts = tokenizer.apply_chat_template(dialogues, padding=True, return_tensors="pt", return_dict=True)
    ids = [row[seen.bool()].tolist() for row, seen in zip(texts["input_ids"], texts["attention_mask"], strict=True)]
    assert ids == rows


def test_the_members_of_an_ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's recipe, on the exported folders alone, gives the stage's rewards."""
    monkeypatch.chdir(tmp_path)
    settings = {"seeds": [0, 1], "heads": 2, "combine": "minimum", "length_normalisation": 3.0}
    reward = train(CASES["plain"](), tmp_path, **settings)
    assert main(["export", "reward", "--to", "out", "--max-shard-size", "9KB"]) == 0
    store = Store.open(tmp_path / "results/toy/prepare/comparisons/test")
    pairs = [(one.prompt.tolist(), ids.tolist()) for one in map(store.__getitem__, range(4)) for ids in one.responses]
    folders = [Path("out"), Path("out/seeds/1")]
    assert all(len(list(folder.glob("*.safetensors"))) > 1 for folder in folders)
    values = torch.cat([scored(folder, [prompt + response for prompt, response in pairs]) for folder in folders], -1)
    values /= 3.0 + torch.tensor([[len(response)] for _, response in pairs])
    values -= torch.tensor(json.loads(Path("out/scoring.json").read_text())["offset"])
    torch.testing.assert_close(values.amin(-1), torch.tensor(held_out(reward)), rtol=0, atol=2e-5)


def test_a_reward_model_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    reward = train(CASES["plain"](), tmp_path)
    assert main(["register", "reward", "--upload"]) == 0
    from mlflow.tracking import MlflowClient

    (version,) = MlflowClient(f"sqlite:///{tmp_path}/results/mlflow.db").search_model_versions("name = 'toy'")
    manifest = read_manifest(reward / MANIFEST)
    assert version.tags["prefdag.sha256"] == manifest.digest("model/model.safetensors")
    (copied,) = (tmp_path / "results/mlartifacts").rglob("*.safetensors")
    assert copied.read_bytes() == (reward / "model/model.safetensors").read_bytes()
