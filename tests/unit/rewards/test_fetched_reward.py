"""Reward models from elsewhere: their own tokenizer, template and head, equal to transformers on single rows."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from chat_templates import CHATML, LLAMA3, ZEPHYR, chat
from prefdag.cli.main import main
from prefdag.config.model import Architectural
from prefdag.models.loading import build
from prefdag.provenance.manifest import MANIFEST, describe, read_manifest
from preparing import PREPARE, byte_tokenizer, write_rows

CPU = torch.device("cpu")
CHAT, LLAMA = ["<|im_start|>", "<|im_end|>"], ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
PROMPTS = [[*TALK, {"role": "user", "content": text}] for text in ("Why?", "What is a long question, then?", "Who")]
ANSWERS = [("Because it is.", "No"), ("A short answer", "None of it, really."), ("Me", "You, or so it seems")]


def write_reward_model(folder: Path, tokenizer: Any, kind: str = "llama", labels: int = 1, **changes: Any) -> Path:
    """Write a small reward model with weights large enough that texts differ."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "num_labels": labels,
        "pad_token_id": None,
        **sizes,
        **changes,
    }
    if kind == "llama":
        model = LlamaForSequenceClassification(LlamaConfig(**{"max_position_embeddings": 256, **shape}))
    else:
        model = BertForSequenceClassification(BertConfig(**{**shape, "pad_token_id": 0}))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def command(stage: str, name: str, config: dict[str, Any], *options: object) -> Path:
    output = Path("results/toy", stage, name, MANIFEST)
    assert main([stage, "--config", json.dumps(config), *map(str, options), "--output", str(output)]) == 0
    return output


def policy_and_comparisons(prompts: list[Any], tokenizer: Any, **prepare: Any) -> tuple[Path, Path]:
    """Fetch and prepare rows; an untrained policy takes the place of SFT's."""
    shape = Architectural(architecture="llama", hidden_size=16, layers=1, heads=2)
    build(shape, len(tokenizer), 0, 1, seed=0).save_pretrained("base")
    tokenizer.save_pretrained("base")
    rows = [{"prompt": p, "chosen": a, "rejected": b} for p, (a, b) in zip(prompts, ANSWERS, strict=True)]
    for split in ("train", "test"):
        write_rows(Path(f"rows/{split}.jsonl"), rows)
    model = command("fetch", "model", {"model": {"source": "base"}})
    data = command("fetch", "data", {"data": {"source": "rows", "train": "train.jsonl", "test": "test.jsonl"}})
    section = {"prepare": {**PREPARE, "leakage": "allow", **prepare}, "dataset": "comparisons"}
    comparisons = command("prepare", "comparisons", section, "--rows", data, "--tokenizer", model)
    sft = Path("results/toy/sft")
    (sft / "model").mkdir(parents=True)
    for path in (model.parent / "model").iterdir():
        (sft / "model" / path.name).write_bytes(path.read_bytes())
    (sft / MANIFEST).write_bytes(describe(sft, "sft", {}, {}, {"base": read_manifest(model).sha256}, {}))
    return sft / MANIFEST, comparisons


def adopt(source: dict[str, Any], sft: Path, comparisons: Path) -> Path:
    """Run `fetch` and `reward` with a source; return the stage's folder."""
    fetched = command("fetch", "reward", {"reward": source})
    inputs = ("--policy", sft, "--comparisons", comparisons, "--source", fetched)
    return command("reward", "", {"reward": {"source": source}}, *inputs).parent


def held_out(folder: Path) -> list[float]:
    rows = list(csv.DictReader((folder / "held_out.csv").open()))
    return [float(row[f"after_{place}"]) for row in rows for place in ("chosen", "rejected")]


def truth(folder: str, texts: list[Any], write: Any) -> torch.Tensor:
    """Return logits of single rows by transformers alone. write: encodes (tokenizer, prompt, answer)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        rows = [
            write(tokenizer, prompt, answer) for prompt, pair in zip(texts, ANSWERS, strict=True) for answer in pair
        ]
        return torch.cat([model(**{k: torch.tensor([v]) for k, v in row.items()}).logits for row in rows])


def as_chat(tokenizer: Any, prompt: Any, answer: str) -> dict[str, Any]:
    messages = [*(prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}])]
    return {
        "input_ids": tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}])["input_ids"]
    }


@pytest.mark.parametrize(
    ("theirs", "prepare"),
    [
        ((CHATML, CHAT), {"template": "chat", "bos": False, "end_of_turn": "<|im_end|>"}),
        ((CHATML, CHAT), {"template": "chat", "bos": True, "end_of_turn": "<|im_end|>", "system": "Be brief."}),
        ((ZEPHYR, []), {"template": "chat", "bos": True, "end_of_turn": "eos"}),
    ],
    ids=["chatml", "system prompt", "zephyr"],
)
def test_another_template_writes_the_dialogue(
    theirs: Any, prepare: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder's rewards are those of its own template on the dialogue, whatever the policy's template is."""
    monkeypatch.chdir(tmp_path)
    sft, comparisons = policy_and_comparisons(PROMPTS, chat(*theirs), **prepare)
    write_reward_model(Path("rm"), chat(LLAMA3, LLAMA))
    folder = adopt({"source": "rm"}, sft, comparisons)
    expected = truth("rm", PROMPTS, as_chat)[:, 0]
    torch.testing.assert_close(torch.tensor(held_out(folder)), expected, rtol=0, atol=2e-5)
    facts = read_manifest(folder / MANIFEST).content["facts"]["source"]
    assert facts["template"] == "chat" and facts["route"].startswith("packed")


def test_text_prompts_become_one_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = ["Once upon", "A story of", "The end"]
    sft, comparisons = policy_and_comparisons(texts, byte_tokenizer(), template="plain", bos=True)
    write_reward_model(Path("rm"), chat(CHATML, CHAT))
    expected = truth("rm", texts, as_chat)[:, 0]
    torch.testing.assert_close(
        torch.tensor(held_out(adopt({"source": "rm"}, sft, comparisons))), expected, rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("template", ["pair", "plain"])
def test_encoders_with_several_labels(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BERT in padded batches, with the types of the second text; the reward is the log-odds of the stated label."""
    monkeypatch.chdir(tmp_path)
    texts = ["\n\nHuman: Hi\n\nAssistant:", "\n\nHuman: Why is that so?\n\nAssistant:", "\n\nHuman: Who?\n\nAssistant:"]
    sft, comparisons = policy_and_comparisons(texts, byte_tokenizer(), template="plain", bos=False)
    words = sequence_tokenizer()
    write_reward_model(Path("rm"), words, "bert", labels=3)
    source = {"source": "rm", "template": template, "label": "LABEL_1"}
    values = torch.tensor(held_out(adopt(source, sft, comparisons)))

    def write(tokenizer: Any, prompt: str, answer: str) -> dict[str, Any]:
        if template == "plain":
            return {"input_ids": tokenizer(f"{prompt} {answer}")["input_ids"]}
        encoded = tokenizer(
            prompt.removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:"), answer, return_token_type_ids=True
        )
        return {key: encoded[key] for key in ("input_ids", "token_type_ids")}

    logits = truth("rm", texts, write)
    odds = logits.softmax(-1)[:, 1].logit()
    torch.testing.assert_close(values, odds, rtol=0, atol=5e-5)
    assert values.std() > 0.01


def sequence_tokenizer() -> Any:
    """Bytes, with what BERT's tokenizer writes around one text and two."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<b> $A <e>", pair="<b> $A <e> $B:1 <e>:1", special_tokens=[("<b>", 0), ("<e>", 1)]
    )
    return tokenizer


def test_the_policy_s_tokens_are_read_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward model that was trained here scores as it did there, after its export and as a source."""
    monkeypatch.chdir(tmp_path)
    sft, comparisons = policy_and_comparisons(PROMPTS, chat(CHATML, CHAT), template="chat", end_of_turn="<|im_end|>")
    config = {"reward": {"batch_size": 2, "max_steps": 3, "learning_rate": 0.01}}
    trained = command("reward", "", config, "--policy", sft, "--comparisons", comparisons).parent
    before = held_out(trained)
    assert main(["export", "reward", "--to", "rm"]) == 0
    (trained / MANIFEST).unlink()
    values = held_out(adopt({"source": "rm", "template": "policy"}, sft, comparisons))
    np.testing.assert_allclose(values, before, rtol=0, atol=2e-5)


def test_answers_are_scored_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`score` writes the column `trained`, which is the headline, and none of an untrained model."""
    monkeypatch.chdir(tmp_path)
    sft, comparisons = policy_and_comparisons(PROMPTS, chat(CHATML, CHAT), template="chat", end_of_turn="<|im_end|>")
    write_reward_model(Path("rm"), chat(LLAMA3, LLAMA))
    reward = adopt({"source": "rm"}, sft, comparisons)
    settings = {"generate": {"max_new_tokens": 9, "temperature": 1.0}}
    answers = command("generate", "sft", settings, "--policy", sft, "--comparisons", comparisons)
    inputs = ("--generations", answers, "--reference", sft, "--policy", sft, "--reward", reward / MANIFEST)
    scores = command("score", "sft", {"score": {"reward": "trained"}}, *inputs).parent
    rows = list(csv.DictReader((scores / "scores.csv").open()))
    assert "untrained" not in rows[0] and all(row["reward"] == row["trained"] for row in rows)
    lines = [json.loads(line) for line in (answers.parent / "generations.jsonl").read_text().split("\n") if line]
    tokenizer, model = AutoTokenizer.from_pretrained("rm"), AutoModelForSequenceClassification.from_pretrained("rm")
    for row, line in zip(rows, lines, strict=True):
        ids = as_chat(tokenizer, PROMPTS[line["prompt_id"]], line["response"])["input_ids"]
        assert float(row["trained"]) == pytest.approx(model(input_ids=torch.tensor([ids])).logits.item(), abs=2e-5)


def test_what_cannot_score_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sft, comparisons = policy_and_comparisons(PROMPTS, chat(CHATML, CHAT), template="chat", end_of_turn="<|im_end|>")

    def refused(source: dict[str, Any]) -> str:
        output = Path(f"results/toy/fetch/reward{len(list(Path('results/toy/fetch').iterdir()))}", MANIFEST)
        if main(["fetch", "--config", json.dumps({"reward": source}), "--output", str(output)]) == 0:
            inputs = ["--policy", str(sft), "--comparisons", str(comparisons), "--source", str(output)]
            config = json.dumps({"reward": {"source": source}})
            assert main(["reward", "--config", config, *inputs, "--output", f"results/toy/reward/{MANIFEST}"]) == 2
        (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("prefdag: ")]
        return line

    assert "holds no weights of a reward head" in refused({"source": "base", "template": "policy"})
    write_reward_model(Path("three"), byte_tokenizer(), labels=3)
    assert "reward.label: three has 3 labels (LABEL_0, LABEL_1, LABEL_2); name the one" in refused({"source": "three"})
    assert "has no label 'good'" in refused({"source": "three", "label": "good"})
    assert "has no chat template" in refused({"source": "three", "label": "LABEL_1", "template": "chat"})
    assert "another vocabulary" in refused({"source": "three", "label": "LABEL_1", "template": "policy"})
    write_reward_model(Path("short"), chat(LLAMA3, LLAMA), max_position_embeddings=24)
    assert "short reads 24 tokens, and a prompt with its response comes to" in refused({"source": "short"})


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_it_labels_sampled_pairs(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage `pairs` orders the policy's samples by it: each row's scores are those of transformers."""
    monkeypatch.chdir(tmp_path)
    is_chat = template == "chat"
    section = {"template": template, "end_of_turn": "<|im_end|>" if is_chat else "eos"}
    prompts = PROMPTS if is_chat else ["Once upon", "A story of", "The end"]
    tokenizer = chat(CHATML, CHAT) if is_chat else byte_tokenizer()
    sft, _ = policy_and_comparisons(prompts, tokenizer, **section)
    write_reward_model(Path("rm"), chat(LLAMA3, LLAMA), max_position_embeddings=1024)
    fetched = command("fetch", "reward", {"reward": {"source": "rm", "template": "chat"}})
    # An end of turn in one of a few tokens, so that samples end.
    monkeypatch.setattr("prefdag.stages.pairs.stop_token", lambda tokenizer, prepare: 70)
    pairs = {"reward": "trained", "num_samples": 8, "max_new_tokens": 200, "temperature": 9.0}
    config = {"pairs": pairs, "prepare": {**PREPARE, **section}}
    rows = Path("results/toy/fetch/data", MANIFEST)
    made = command("pairs", "", config, "--policy", sft, "--rows", rows, "--reward", fetched).parent
    lines = [json.loads(line) for line in (made / "train.jsonl").read_text().split("\n") if line]
    assert len(lines) > 3
    tokenizer, model = AutoTokenizer.from_pretrained("rm"), AutoModelForSequenceClassification.from_pretrained("rm")
    for row in lines[:4]:
        values = []
        for text in row["responses"]:
            answer = text if is_chat else text.removeprefix(" ")
            ids = as_chat(tokenizer, row["prompt"], answer)["input_ids"]
            values.append(model(input_ids=torch.tensor([ids])).logits.item())
        assert row["scores"] == pytest.approx(values, abs=2e-5) and values[0] > values[1]
